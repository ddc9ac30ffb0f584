"""``/openapi.json``: the table of operations and the types of the documents, as OpenAPI 3.1.

Rules of this file: pure; nothing is said here that is not in the table or in a type.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mcp_proxy import __version__
from mcp_proxy.admin.contract import COMMON, EVENTS, JSON, OPEN, OPERATIONS, Operation
from mcp_proxy.admin.documents import BackendEvent, EndEvent, MissedEvent, Refusal
from mcp_proxy.telemetry.access_log import AccessLine

Schema = dict[str, Any]

_EVENTS: Final = {
    "exchange": AccessLine,
    "backend": BackendEvent,
    "missed": MissedEvent,
    "end": EndEvent,
}


def describe() -> Schema:
    """The whole document."""
    types = [*_types(), Refusal, *_EVENTS.values()]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = {repr(type): schema for type, schema in zip(types, schemas, strict=True)}
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mcp-proxy admin",
            "version": __version__,
            "description": "Operate a running proxy. HEAD is answered like GET.",
        },
        # The token is needed where one is configured; without, only loopback names are served.
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _types() -> list[Any]:
    answers = [answer.type for operation in OPERATIONS for answer in operation.answers.values()]
    bodies = [operation.body[1] for operation in OPERATIONS if operation.body is not None]
    return [type for type in answers + bodies if type is not None]


def _operation(operation: Operation, schemas: dict[str, Schema]) -> Schema:
    responses = {
        str(status): {
            "description": answer.about,
            "content": {content: _content(content, answer.type, schemas) for content in answer.contents},
        }
        for status, answer in operation.answers.items()
    }
    is_open = operation.path in OPEN
    common = {status: words for status, words in COMMON.items() if not (is_open and status == 401)}
    for status, words in sorted((common | operation.refusals).items()):
        responses[str(status)] = {
            "description": f"Reason: {' or '.join(words)}.",
            "content": {JSON: {"schema": schemas[repr(Refusal)]}},
        }
    described: Schema = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.about.partition(". ")[0].rstrip("."),
        "description": operation.about,
        "responses": responses,
    }
    if is_open:
        described["security"] = []
    if operation.parameters:
        described["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.where,
                "description": parameter.about,
                "required": parameter.where == "path",
                "schema": parameter.schema,
            }
            for parameter in operation.parameters
        ]
    if operation.body is not None:
        content, type = operation.body
        described["requestBody"] = {"content": {content: _content(content, type, schemas)}}
    return described


def _content(content: str, type: Any, schemas: dict[str, Schema]) -> Schema:
    if content == EVENTS:
        events = {name: schemas[repr(event)] for name, event in _EVENTS.items()}
        return {"schema": {"type": "string"}, "x-events": events}
    return {"schema": {"type": "string"} if type is None else schemas[repr(type)]}
