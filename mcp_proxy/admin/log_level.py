"""``/log-level``: operators see how much the proxy says about itself, and change it while it runs.

Rules of this file: a change is written to the log whatever the level is, with who asked for it.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mcp_proxy.admin import AdminView
from mcp_proxy.admin.answers import Endpoint, document, refusal
from mcp_proxy.admin.bodies import order_of
from mcp_proxy.admin.documents import LogLevel
from mcp_proxy.sessions import settled
from mcp_proxy.telemetry.app_log import LEVELS, announce

_HINT: Final = f'the body must be JSON such as {{"level": "debug"}}; levels are {", ".join(LEVELS)}'


def log_level_endpoint(view: AdminView) -> Endpoint:
    async def log_level(request: Request) -> Response:
        if request.method != "PUT":
            return document(200, LogLevel(view.log_level()))
        try:
            order = msgspec.json.decode(await order_of(request), type=LogLevel)
        except (ValueError, RecursionError):
            return refusal(400, "bad_body", _HINT)
        before = view.log_level()
        await settled(view.set_log_level(order.level))
        who = "" if request.client is None else f" by {request.client.host}"
        announce(f"log level: changed from {before} to {order.level}{who}")
        return document(200, order)

    return log_level
