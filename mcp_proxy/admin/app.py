"""The admin listener: health, metrics, status and sessions, as a Starlette app.

Rules of this file: endpoints are ``async`` even if they never wait, because Starlette runs the
others in threads and everything a view reads belongs to the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from mcp_proxy.admin.answers import answer, document, refusal, text
from mcp_proxy.admin.guard import Guard
from mcp_proxy.admin.sessions import session_routes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from mcp_proxy.admin import AdminView, Check

T = TypeVar("T")


def create_admin(view: AdminView, token: str | None) -> Starlette:
    """The app for the admin listener. It has no lifespan work and keeps no state.

    ``token`` None restricts it to loopback names; see ``guard.py``. Raises ValueError for an empty
    token.
    """
    endpoints = _Endpoints(view)
    app = Starlette(
        routes=[
            Route("/livez", endpoints.livez),
            Route("/readyz", endpoints.readyz),
            Route("/metrics", endpoints.metrics),
            Route("/status.json", endpoints.status),
            *session_routes(view),
        ],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    # A redirect to the same path with or without "/" would repeat the Host header of the request.
    app.router.redirect_slashes = False
    # Now instead of at the first request: a bad token stops the start.
    app.middleware_stack = app.build_middleware_stack()
    return app


class _Endpoints:
    def __init__(self, view: AdminView) -> None:
        self._view = view

    async def livez(self, request: Request) -> Response:
        return text(200, "ok\n") if self._view.alive() else text(503, "not alive\n")

    async def readyz(self, request: Request) -> Response:
        """``?verbose`` lists the checks."""
        checks = await _settled(self._view.ready())
        is_ready = all(check.ok for check in checks)
        body = "ok\n" if is_ready else "not ready\n"
        if "verbose" in request.query_params:
            body = "".join(map(_verbose, checks)) + body
        return text(200 if is_ready else 503, body)

    async def metrics(self, request: Request) -> Response:
        exposition = await _settled(self._view.metrics(request.headers.get("accept")))
        if exposition is None:
            return refusal(404, "not_found", "metrics are switched off")
        return answer(200, *exposition)

    async def status(self, request: Request) -> Response:
        return document(200, await _settled(self._view.status()))


async def _settled(value: T | Awaitable[T]) -> T:
    """A view of several processes has to ask them first."""
    return await value if isinstance(value, Awaitable) else value


def _verbose(check: Check) -> str:
    detail = f": {check.detail}" if check.detail else ""
    return f"[{'+' if check.ok else '-'}] {check.name}{detail}\n"


async def _refused(request: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths, and methods that a path does not have."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    return refusal(error.status_code, phrase.lower().replace(" ", "_"), phrase, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    """A defect of ours: it is raised again, into the log of the process, and not shown."""
    return refusal(500, "internal_error", "the proxy's log says more")
