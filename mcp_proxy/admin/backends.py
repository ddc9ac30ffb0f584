"""``/backends``: operators see backends, drain them and take that back.

Rules of this file: a backend is named by its id as ``/status.json`` shows it, percent-encoded or not; it may
be in several pools, and without ``pool`` all of them are meant.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mcp_proxy.admin import AdminView, BackendStatus
from mcp_proxy.admin.answers import Endpoint, document, refusal
from mcp_proxy.admin.bodies import order_of
from mcp_proxy.admin.documents import Backends, DrainOrder
from mcp_proxy.config.amounts import duration
from mcp_proxy.config.values import Invalid
from mcp_proxy.sessions import settled


def backend_endpoints(view: AdminView) -> dict[str, Endpoint]:
    """By path."""
    endpoints = _Backends(view)
    return {
        "/backends": endpoints.index,
        "/backends/{id}": endpoints.one,
        "/backends/{id}/drain": endpoints.drain,
    }


class _Backends:
    def __init__(self, view: AdminView) -> None:
        self._view = view

    async def index(self, request: Request) -> Response:
        query = _query(request, {"pool"})
        if isinstance(query, Response):
            return query
        return document(200, Backends(await self._known(None, query.get("pool"))))

    async def one(self, request: Request) -> Response:
        query = _query(request, {"pool"})
        if isinstance(query, Response):
            return query
        return _found(await self._known(request.path_params["id"], query.get("pool")))

    async def drain(self, request: Request) -> Response:
        backend_id: str = request.path_params["id"]
        # Of a backend whose own path ends in "/drain" the encoded id ends like this operation.
        if not request.scope.get("raw_path", b"/drain").partition(b"?")[0].endswith(b"/drain"):
            return _found([])
        is_order = request.method == "POST"
        query = _query(request, {"pool", "for"} if is_order else {"pool"})
        if isinstance(query, Response):
            return query
        pool = query.get("pool")
        if not is_order:
            return _found(await self._view.undrain_backend(backend_id, pool))
        seconds = await _seconds(request, query.get("for"))
        if isinstance(seconds, Response):
            return seconds
        return _found(await self._view.drain_backend(backend_id, pool, seconds))

    async def _known(self, backend_id: str | None, pool: str | None) -> list[BackendStatus]:
        status = await settled(self._view.status())
        return [
            msgspec.structs.replace(backend, pool=name)
            for name, members in status.pools.items()
            for backend in members.backends
            if pool in (None, name) and backend_id in (None, backend.id)
        ]


def _found(backends: list[BackendStatus]) -> Response:
    if backends:
        return document(200, Backends(backends))
    return refusal(404, "backend_not_found", "no pool that was asked for has such a backend; see /backends")


def _query(request: Request, known: set[str]) -> dict[str, str] | Response:
    given = request.query_params
    if given.keys() - known or len(given.multi_items()) != len(given):
        return refusal(400, "bad_query", f"known are {' and '.join(sorted(known))}, each once")
    return dict(given)


async def _seconds(request: Request, given: str | None) -> float | Response | None:
    """How long it may take; None: as configured."""
    try:
        order = await _order(request)
    except (ValueError, RecursionError):
        return refusal(400, "bad_body", 'the body must be JSON such as {"for": "5m"}, or empty')
    if order.for_ is not None and given is not None:
        return refusal(400, "bad_query", "for is in the query and in the body; give one")
    text = order.for_ if given is None else given
    try:
        return None if text is None else duration(text)
    except Invalid as invalid:
        return refusal(400, "bad_duration", str(invalid.hint))


async def _order(request: Request) -> DrainOrder:
    """Raises ValueError for a body that is none."""
    body = await order_of(request)
    return msgspec.json.decode(body, type=DrainOrder) if body else DrainOrder()
