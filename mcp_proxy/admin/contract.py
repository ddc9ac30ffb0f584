"""Everything that can be asked of the admin listener, as one table. Routes come from it, and
``/openapi.json``.

Rules of this file: values only. Paths are written as OpenAPI does; what every guarded operation may answer is
in ``COMMON`` and not repeated.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from mcp_proxy.admin import Status
from mcp_proxy.admin.backup import CONTENT_TYPE as BACKUP
from mcp_proxy.admin.documents import (
    Backends,
    Draining,
    DrainOrder,
    Ended,
    LogLevel,
    Restored,
    Session,
    Sessions,
)

JSON: Final = "application/json"
TEXT: Final = "text/plain"
EVENTS: Final = "text/event-stream"
_STRING: Final = {"type": "string"}

Refusals = dict[int, tuple[str, ...]]
"""Reasons by status."""


class Parameter(NamedTuple):
    name: str
    where: str
    """``path`` or ``query``."""
    about: str
    schema: dict[str, Any] = _STRING


class Answer(NamedTuple):
    about: str
    type: Any = None
    """Of the document; None for what is no JSON."""
    contents: tuple[str, ...] = (JSON,)


class Operation(msgspec.Struct, frozen=True):
    """``refusals``: reasons by status, beside those in ``COMMON``."""

    method: str
    path: str
    id: str
    tag: str
    about: str
    answers: dict[int, Answer]
    refusals: Refusals = {}
    parameters: tuple[Parameter, ...] = ()
    body: tuple[str, Any] | None = None
    """Content type and type; never required."""


COMMON: Final[Refusals] = {
    401: ("token_required",),
    403: ("origin_not_allowed",),
    421: ("host_not_allowed",),
}

OPEN: Final = frozenset({"/", "/livez", "/readyz"})
"""Paths that need no token: they tell nothing that is worth one."""

CONVERTORS: Final = {"/backends/{id}": "id:path"}
"""A backend's id is a URL, so it has slashes once it is decoded."""

_POOL = Parameter("pool", "query", "Only this pool.")
_ID = Parameter("id", "path", "The backend's id, a URL, percent-encoded.")
_NAME = Parameter("name", "path", "40 hex digits.", {"type": "string", "pattern": "^[0-9a-f]{40}$"})
_FOR = Parameter("for", "query", "As in the body; one of both.")
_CURSOR = Parameter("cursor", "query", "What the page before said.", {"type": "string", "maxLength": 512})
_LIMIT = Parameter(
    "limit", "query", "Size of a page.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
)
_NO_BACKEND: Refusals = {400: ("bad_query",), 404: ("backend_not_found",)}
_REGISTRY: Refusals = {503: ("store_unavailable",)}
_NO_SESSION: Refusals = {404: ("session_not_found",)} | _REGISTRY

OPERATIONS: Final = (
    Operation(
        "GET", "/", "page", "status", "The status page, for people.",
        {200: Answer("A page that needs nothing else.", None, ("text/html",))},
    ),
    Operation(
        "GET", "/livez", "livez", "health", "Whether the process works.",
        {200: Answer("It does.", None, (TEXT,)), 503: Answer("It has to be restarted.", None, (TEXT,))},
    ),
    Operation(
        "GET", "/readyz", "readyz", "health", "Whether new clients should come here.",
        {200: Answer("They should.", None, (TEXT,)), 503: Answer("They should not.", None, (TEXT,))},
        parameters=(Parameter("verbose", "query", "List the checks. Needs no value."),),
    ),
    Operation(
        "GET", "/metrics", "metrics", "status", "Metrics for Prometheus.",
        {200: Answer("Format by Accept.", None, (TEXT, "application/openmetrics-text"))},
        {404: ("not_found",)},
    ),
    Operation(
        "GET", "/status.json", "status", "status", "Pools, limits and totals.",
        {200: Answer("The state of the proxy.", Status)},
    ),
    Operation(
        "GET", "/config", "config", "status", "The configuration in force, without secrets.",
        {200: Answer("Keys as in the file; durations in seconds, sizes in bytes.", dict[str, Any])},
    ),
    Operation(
        "GET", "/openapi.json", "openapi", "status", "This description.",
        {200: Answer("OpenAPI 3.1.", dict[str, Any])},
    ),
    Operation(
        "GET", "/events", "events", "status",
        "Finished exchanges and changes of backends, as they happen. A reader that is too slow gets `missed`"
        " with their number instead. `end` is the last event.",
        {200: Answer("Server-sent events; the schemas of their data are in x-events.", None, (EVENTS,))},
        {503: ("too_many_readers",)},
    ),
    Operation(
        "GET", "/backends", "backends", "backends", "Backends of all pools.",
        {200: Answer("In the order of the pools.", Backends)}, {400: ("bad_query",)}, (_POOL,),
    ),
    Operation(
        "GET", "/backends/{id}", "backend", "backends", "One backend, in each pool that has it.",
        {200: Answer("Never empty.", Backends)}, _NO_BACKEND, (_ID, _POOL),
    ),
    Operation(
        "POST", "/backends/{id}/drain", "drainBackend", "backends",
        "Nothing new for this backend. What it has goes on until the time is over; then its streams end, and"
        " its sessions end or move, as the pool is configured.",
        {200: Answer("As it is now.", Backends)},
        {400: ("bad_query", "bad_body", "bad_duration"), 404: ("backend_not_found",)},
        (_ID, _POOL, _FOR),
        (JSON, DrainOrder),
    ),
    Operation(
        "DELETE", "/backends/{id}/drain", "undrainBackend", "backends", "It stays after all.",
        {200: Answer("As it is now.", Backends)}, _NO_BACKEND, (_ID, _POOL),
    ),
    Operation(
        "POST", "/drain", "drainProxy", "status",
        "Drain the proxy itself and end its process, as SIGTERM does. Once it began, asking again changes"
        " nothing.",
        {202: Answer("It has begun.", Draining)},
    ),
    Operation(
        "GET", "/log-level", "logLevel", "status", "How much the proxy says about itself.",
        {200: Answer("The level in force.", LogLevel)},
    ),
    Operation(
        "PUT", "/log-level", "setLogLevel", "status",
        "Say more or less, in every process, until the proxy ends. The change itself is always said.",
        {200: Answer("As it is now.", LogLevel)}, {400: ("bad_body",)},
        body=(JSON, LogLevel),
    ),
    Operation(
        "GET", "/sessions", "sessions", "sessions", "Sessions, a page at a time.",
        {200: Answer("May be empty and not the last.", Sessions)},
        {400: ("bad_query", "bad_cursor")} | _REGISTRY,
        (_CURSOR, _LIMIT, _POOL),
    ),
    Operation(
        "GET", "/sessions/export", "exportSessions", "sessions", "A backup of all sessions. Guard it.",
        {200: Answer("One JSON object per line; without its last line it is not whole.", None, (BACKUP,))},
        _REGISTRY,
    ),
    Operation(
        "POST", "/sessions/import", "importSessions", "sessions", "Restore a backup. To do it twice is safe.",
        {200: Answer("How many.", Restored)},
        {400: ("invalid_backup",), 415: ("unsupported_media_type",)} | _REGISTRY,
        body=(BACKUP, None),
    ),
    Operation(
        "GET", "/sessions/{name}", "session", "sessions", "One session.",
        {200: Answer("Without what makes it usable.", Session)},
        _NO_SESSION, (_NAME,),
    ),
    Operation(
        "DELETE", "/sessions/{name}", "endSession", "sessions", "End a session; its client starts again.",
        {200: Answer("It is over.", Ended)}, _NO_SESSION, (_NAME,),
    ),
)  # fmt: skip


def route_path(path: str) -> str:
    """As Starlette writes it."""
    for prefix, convertor in CONVERTORS.items():
        if path.startswith(prefix):
            return path.replace("{id}", "{" + convertor + "}")
    return path
