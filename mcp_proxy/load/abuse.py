"""Requests that no client should send, and what must be said to each. Pure.

Rules of this file: mcp-proxy's own words are known exactly (its table of replies); of any other server a
clean 4xx is right. Something in front may have been faster: an answer without ``Mcp-Proxy-Reason`` is judged
as anybody's. Never right: 2xx, 5xx, silence, and a connection that ends without an answer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mcp_proxy.load import Facts, messages
from mcp_proxy.load.messages import ACCEPT, JSON, LEGACY, MODERN

OVERSIZE_BYTES: Final = 4 * 1024 * 1024 + 64 * 1024
"""Above the default of ``limits.body`` and of the official Python SDK."""
LONG_HEAD_BYTES: Final = 40 * 1024
"""Above the default of ``limits.head``, and of nginx's."""
ELSEWHERE: Final = "elsewhere.invalid"
STRANGER: Final = "0" * 32
"""A session id that nobody has."""
SECOND_STREAM: Final = "second stream of a session"
"""Needs a session, so the user makes this one himself."""

EDGE: Final = "edge_"
"""Words of the nginx in ``nginx/``, which may have been faster than the proxy."""

_VERSION: Final = ("MCP-Protocol-Version", LEGACY)


class Abuse(NamedTuple):
    name: str
    status: int
    """mcp-proxy's."""
    words: frozenset[str] = frozenset()
    """mcp-proxy's, any of them; empty: the backend's own answer is passed on, any 4xx."""
    method: str = "POST"
    fields: tuple[tuple[str, str], ...] = (ACCEPT, JSON)
    body: bytes | None = None
    host: str | None = None
    suffix: str = ""
    """Behind the path."""
    era: str = "any"


def _message(method: str = "tools/list") -> bytes:
    return messages.request(1, method)


def _oversize() -> bytes:
    """Broken at the end as well, so that a server with a larger limit must refuse it, too."""
    return b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"padding":"' + b"x" * OVERSIZE_BYTES


def _modern(*fields: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (ACCEPT, JSON, ("MCP-Protocol-Version", MODERN), *fields)


def _words(*words: str) -> frozenset[str]:
    return frozenset(words)


_SESSION: Final = ("Mcp-Session-Id", STRANGER)
_PADDING: Final = ("X-Padding", "x" * LONG_HEAD_BYTES)

TABLE: Final = {
    abuse.name: abuse
    for abuse in (
        Abuse("bad JSON", 400, _words("parse_error"), body=b'{"jsonrpc":'),
        Abuse("no message", 400, _words("invalid_request"), body=b'"hello"'),
        Abuse(
            *("batch", 400, _words("invalid_request")),
            fields=(ACCEPT, JSON, _VERSION),
            body=b"[%b]" % _message("ping"),
        ),
        Abuse("body too large", 413, _words("body_too_large"), body=_oversize()),
        Abuse(
            *("head too large", 431, _words("head_too_large")),
            fields=(ACCEPT, JSON, _PADDING),
            body=_message(),
        ),
        Abuse(
            *("wrong content type", 415, _words("unsupported_media_type")),
            fields=(ACCEPT, ("Content-Type", "text/plain")),
            body=_message(),
        ),
        Abuse(
            *("foreign Origin", 403, _words("forbidden_origin")),
            fields=(ACCEPT, JSON, ("Origin", f"https://{ELSEWHERE}")),
            body=messages.initialize(1),
        ),
        Abuse("foreign Host", 421, _words("misdirected"), body=messages.initialize(1), host=ELSEWHERE),
        Abuse("unknown path", 404, _words("not_found"), body=_message(), suffix="/no/such/path"),
        Abuse("unknown HTTP method", 405, _words("method_not_allowed"), method="PUT"),
        Abuse(
            *("GET without a session", 405, _words("method_not_allowed"), "GET", (messages.EVENTS,)),
            era="legacy",
        ),
        Abuse(
            *(
                "unknown session",
                404,
                _words("session_not_found"),
                "POST",
                (ACCEPT, JSON, _VERSION, _SESSION),
            ),
            body=_message(),
            era="sessions",
        ),
        Abuse(
            *("GET of an unknown session", 404, _words("session_not_found"), "GET"),
            fields=(messages.EVENTS, _VERSION, _SESSION),
            era="sessions",
        ),
        Abuse(
            *("DELETE of an unknown session", 404, _words("session_not_found"), "DELETE"),
            fields=(_VERSION, _SESSION),
            era="sessions",
        ),
        Abuse("no session", 400, fields=(ACCEPT, JSON, _VERSION), body=_message(), era="sessions"),
        Abuse(
            *("header and body differ", 400, _words("header_mismatch")),
            fields=_modern(("Mcp-Method", "ping")),
            body=messages.modern_request(1, "tools/list"),
            era="modern",
        ),
        Abuse(
            *("no _meta", 400, _words("missing_meta")),
            fields=_modern(("Mcp-Method", "tools/list")),
            body=_message(),
            era="modern",
        ),
        Abuse(
            *("GET of the modern era", 405, _words("method_not_allowed"), "GET"),
            fields=(messages.EVENTS, ("MCP-Protocol-Version", MODERN)),
            era="modern",
        ),
    )
}


def is_possible(abuse: Abuse, facts: Facts) -> bool:
    """Whether the server has what the request abuses."""
    served = {
        "any": True,
        "legacy": facts.legacy is not None,
        "sessions": facts.sessions,
        "modern": facts.modern,
    }
    return served[abuse.era]


def fault(
    abuse: Abuse, status: int, word: str | None, body: bytes, kind: str, *, is_proxy: bool
) -> str | None:
    """What is wrong with the answer; None: it is the right refusal. ``word``: ``Mcp-Proxy-Reason``."""
    if is_proxy and word is not None and not word.startswith(EDGE) and abuse.words:
        if status != abuse.status or word not in abuse.words:
            return f"expected {abuse.status} {'/'.join(sorted(abuse.words))}, got {status} {word}"
        if kind == "application/json" and _reason(body) != word:
            return "a refusal whose body does not say what its header says"
        return None
    if 400 <= status < 500:
        return None
    return f"expected a refusal, got {status}" + (f" {word}" if word else "")


def _reason(body: bytes) -> object:
    message = messages.parse(body) or {}
    error = message.get("error")
    data = error.get("data") if isinstance(error, dict) else None
    return data.get("reason") if isinstance(data, dict) else None
