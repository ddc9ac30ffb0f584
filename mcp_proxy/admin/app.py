"""The admin listener, as a Starlette app: what the table in ``contract.py`` says, and how it is answered.

Rules of this file: endpoints are ``async`` even if they never wait, because Starlette runs the
others in threads and everything a view reads belongs to the event loop.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from mcp_proxy.admin.answers import Endpoint, answer, document, refusal, text
from mcp_proxy.admin.backends import backend_endpoints
from mcp_proxy.admin.contract import OPERATIONS, route_path
from mcp_proxy.admin.documents import Draining
from mcp_proxy.admin.events import events_endpoint
from mcp_proxy.admin.feed import Feed
from mcp_proxy.admin.guard import Guard
from mcp_proxy.admin.log_level import log_level_endpoint
from mcp_proxy.admin.openapi import describe
from mcp_proxy.admin.page import page_endpoint
from mcp_proxy.admin.sessions import session_endpoints
from mcp_proxy.sessions import settled

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from mcp_proxy.admin import AdminView, Check


def create_admin(view: AdminView, token: str | None, metrics_token: str | None = None) -> Starlette:
    """The app for the admin listener. It has no lifespan work; what it owns ends with the last reader of
    ``/events``.

    ``token`` None restricts it to loopback names, ``metrics_token`` opens ``/metrics`` only; see
    ``guard.py``. Raises ValueError for an empty token.
    """
    app = Starlette(
        routes=_routes(view),
        middleware=[Middleware(Guard, token=token, metrics_token=metrics_token)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    # A redirect to the same path with or without "/" would repeat the Host header of the request.
    app.router.redirect_slashes = False
    # Now instead of at the first request: a bad token stops the start.
    app.middleware_stack = app.build_middleware_stack()
    return app


def _routes(view: AdminView) -> list[Route]:
    """Of every path in the table, in its order: of two that match the first answers."""
    own = _Endpoints(view)
    endpoints: dict[str, Endpoint] = {
        "/": page_endpoint(),
        "/livez": own.livez,
        "/readyz": own.readyz,
        "/metrics": own.metrics,
        "/status.json": own.status,
        "/config": own.config,
        "/openapi.json": own.openapi,
        "/events": events_endpoint(Feed(view)),
        "/drain": own.drain,
        "/log-level": log_level_endpoint(view),
        **backend_endpoints(view),
        **session_endpoints(view),
    }
    methods: dict[str, list[str]] = {}
    for operation in OPERATIONS:
        methods.setdefault(operation.path, []).append(operation.method)
    # The id of a backend takes whatever follows, so what is longer is looked at first.
    paths = sorted(methods, key=lambda path: path.endswith("{id}"))
    return [Route(route_path(path), endpoints.pop(path), methods=methods[path]) for path in paths]


class _Endpoints:
    def __init__(self, view: AdminView) -> None:
        self._view = view

    async def livez(self, request: Request) -> Response:
        return text(200, "ok\n") if self._view.alive() else text(503, "not alive\n")

    async def readyz(self, request: Request) -> Response:
        """``?verbose`` lists the checks."""
        checks = await settled(self._view.ready())
        is_ready = all(check.ok for check in checks)
        body = "ok\n" if is_ready else "not ready\n"
        if "verbose" in request.query_params:
            body = "".join(map(_verbose, checks)) + body
        return text(200 if is_ready else 503, body)

    async def metrics(self, request: Request) -> Response:
        exposition = await settled(self._view.metrics(request.headers.get("accept")))
        if exposition is None:
            return refusal(404, "not_found", "metrics are switched off")
        return answer(200, *exposition)

    async def status(self, request: Request) -> Response:
        return document(200, await settled(self._view.status()))

    async def config(self, request: Request) -> Response:
        return document(200, self._view.configuration())

    async def openapi(self, request: Request) -> Response:
        return document(200, describe())

    async def drain(self, request: Request) -> Response:
        self._view.drain_proxy()
        return document(202, Draining(True))


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
