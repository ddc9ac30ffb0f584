"""How the admin listener answers: every response is made here, so all carry the same headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

Endpoint = Callable[[Request], Awaitable[Response]]

SECURITY_HEADERS = {
    "cache-control": "no-store",
    # A browser must not take an exposition or a status for a page or a script.
    "x-content-type-options": "nosniff",
}


def answer(status: int, body: bytes, content_type: str, extra: Mapping[str, str] | None = None) -> Response:
    headers = {**SECURITY_HEADERS, "content-type": content_type, **(extra or {})}
    return Response(body, status, headers)


def text(status: int, body: str) -> Response:
    return answer(status, body.encode(), "text/plain; charset=utf-8")


def document(status: int, value: object, extra: Mapping[str, str] | None = None) -> Response:
    """JSON, indented: the first reader is a person with curl."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    return answer(status, body, "application/json", extra)


def refusal(status: int, reason: str, detail: str, extra: Mapping[str, str] | None = None) -> Response:
    """An error: ``reason`` is a stable word, ``detail`` a sentence of ours."""
    return document(status, {"error": {"reason": reason, "detail": detail}}, extra)
