"""A slow and plain reader of JSON-RPC bodies, to compare ``envelope.py`` with.

It is ``json`` with its laxness removed and every pair of an object kept. It shares the tables of
names and limits with its subject, and no code.
"""

from __future__ import annotations

import json
from math import isinf
from typing import Any

from mcp_proxy import envelope, jsontext
from mcp_proxy.envelope import INVALID_REQUEST, PARSE_ERROR, Kind

META = "io.modelcontextprotocol/"


class Pairs(list[tuple[str, Any]]):
    """An object with all its members."""


class Refused(Exception):
    def __init__(self, code: int, id: object = None) -> None:
        self.outcome = (code, id)


def reject(_: str) -> None:
    raise ValueError


def finite(text: str) -> float:
    if isinf(float(text)):
        raise ValueError
    return float(text)


def integer(text: str) -> int:
    finite(text)
    return int(text)


def check_text(value: object, depth: int = 1) -> None:
    """Strings have UTF-8, and nothing is nested too deep."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, list):
        if depth > jsontext.MAX_DEPTH:
            raise ValueError
        for item in value:
            for part in item if isinstance(item, tuple) else [item]:
                check_text(part, depth + 1)


def read(body: bytes) -> Any:
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=Pairs,
            parse_float=finite,
            parse_int=integer,
            parse_constant=reject,
        )
        check_text(value)
    except (ValueError, RecursionError):
        raise Refused(PARSE_ERROR) from None
    return value


def fold(key: str) -> str:
    return key.upper().casefold().replace("\u0307", "")


def members(value: object, known: list[str], id: object) -> dict[str, Any]:
    if not isinstance(value, Pairs) or len(value) > jsontext.MAX_MEMBERS:
        raise Refused(INVALID_REQUEST, id)
    fields: dict[str, Any] = {}
    for key, item in value:
        is_variant = any(key != name and fold(key) == fold(name) for name in known) and key not in known
        if key in fields or is_variant:
            raise Refused(INVALID_REQUEST, id)
        fields[key] = item
    return fields


def string(fields: dict[str, Any], key: str, id: object) -> str | None:
    if key in fields and not isinstance(fields[key], str):
        raise Refused(INVALID_REQUEST, id)
    return fields.get(key)


def reference(body: bytes) -> tuple[object, ...]:
    """kind, method, id, name, version, traceparent, tracestate, has_request_state, methods."""
    value = read(body)
    if not isinstance(value, list) or isinstance(value, Pairs):
        return single(value)
    if not 0 < len(value) <= jsontext.MAX_ELEMENTS:
        raise Refused(INVALID_REQUEST)
    try:
        messages = [single(element) for element in value]
    except Refused:
        raise Refused(INVALID_REQUEST) from None
    methods = tuple(each[1] for each in messages)
    if "initialize" in methods:
        raise Refused(INVALID_REQUEST)
    versions = {each[4] for each in messages if each[4] is not None}
    if len(versions) > 1:
        raise Refused(INVALID_REQUEST)
    state = any(each[7] for each in messages)
    return (Kind.BATCH, "", None, None, *(versions or [None]), None, None, state, methods)


def single(value: object) -> tuple[object, ...]:
    fields = members(value, ["jsonrpc", "id", "method", "params", "result", "error"], None)
    id = fields.get("id")
    is_number = isinstance(id, int) and not isinstance(id, bool) and abs(id) <= 2**53
    if "id" in fields and not is_number and not isinstance(id, str):
        raise Refused(INVALID_REQUEST)
    echo = id if "method" in fields else None
    if fields.get("jsonrpc") != "2.0":
        raise Refused(INVALID_REQUEST, echo)
    if ("method" in fields) + ("result" in fields) + ("error" in fields) != 1:
        raise Refused(INVALID_REQUEST, echo)
    if "method" in fields:
        return request(fields, id)
    if "id" not in fields:
        raise Refused(INVALID_REQUEST)
    return (Kind.RESPONSE, "", id, None, None, None, None, False, ())


def request(fields: dict[str, Any], id: object) -> tuple[object, ...]:
    method = fields["method"]
    if not isinstance(method, str) or not 0 < len(method) <= 256 or not method.isprintable():
        raise Refused(INVALID_REQUEST, id)
    known = ["name", "uri", "taskId", "ref", "_meta", "requestState", "inputResponses"]
    aliases = ["task_id", "request_state", "input_responses"]
    params = members(fields.get("params", Pairs()), known, id)
    if any(fold(key) in aliases for key in params):
        raise Refused(INVALID_REQUEST, id)
    reserved = [META + key for key in ("protocolVersion", "clientCapabilities", "clientInfo", "logLevel")]
    known = [*reserved, "traceparent", "tracestate", "baggage"]
    meta = members(params.get("_meta", Pairs()), known, id)
    key = envelope._NAME_KEYS.get(method)
    holder = params
    if key == "ref" and "ref" in params:
        holder = members(params["ref"], ["type", "name", "uri"], id)
        if {"name", "uri"} <= holder.keys():
            raise Refused(INVALID_REQUEST, id)
        key = "name" if "name" in holder else "uri"
    name = None if key is None else string(holder, key, id)
    if name is not None and "\0" in name:
        raise Refused(INVALID_REQUEST, id)
    version = string(meta, META + "protocolVersion", id)
    traces = [meta[k] if isinstance(meta.get(k), str) else None for k in ("traceparent", "tracestate")]
    state = "requestState" in params or "inputResponses" in params
    kind = Kind.REQUEST if "id" in fields else Kind.NOTIFICATION
    return (kind, method, id, name, version, *traces, state, ())
