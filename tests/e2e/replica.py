"""One replica of a real MCP server, built with the official SDK, in every mode that the SDK has.

Rules of this file: the MCP part is ordinary SDK code and knows of no proxy. Each mode has a path of
its own, so one process serves them all. Beside MCP there are a few plain HTTP routes for the test,
which speaks to them directly: the journal of what arrived, and gates that hold a tool until the test
says go, so that no test depends on time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import Context, Elicit, MCPServer, RequestStateSecurity, Resolve, Sample
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ToolsListChanged
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import (
    CreateMessageResult,
    JSONRPCMessage,
    RequestParams,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MODES: dict[str, dict[str, Any]] = {
    "stateful": {},
    "json": {"json_response": True},
    "stateless": {"stateless_http": True},
    "stateless-json": {"stateless_http": True, "json_response": True},
    "resumable": {"retry_interval": 1},
}
"""Path of the endpoint, and how the SDK is told to serve it."""

MARK = "x-test-mark"
"""Header by which a test recognises its own requests in the journal."""

STATE_KEY = b"the replicas share this key, as replicas do in production"

Ctx = Context[Any, Any]


class Visit(BaseModel):
    """Who answered, and how often this session has been here; None without a session."""

    replica: str
    visit: int | None


class Topping(BaseModel):
    """What the user is asked for."""

    topping: str


class Vendor(Extension):
    """A request method that no specification knows."""

    identifier = "com.example/vendor"

    def __init__(self, replica: str) -> None:
        self._replica = replica

    def methods(self) -> list[MethodBinding]:
        return [MethodBinding("com.example/shout", ShoutParams, self._shout)]

    async def _shout(self, _: ServerRequestContext[Any, Any], params: ShoutParams) -> dict[str, Any]:
        return {"loud": params.text.upper(), "replica": self._replica, "resultType": "complete"}


class ShoutParams(RequestParams):
    text: str


class Events(EventStore):
    """Remembers every event, so that a stream can be resumed."""

    def __init__(self) -> None:
        self._events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        last = int(last_event_id)
        stream = self._events[last - 1][0]
        for number, (owner, message) in enumerate(self._events[last:], last + 1):
            if owner == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Board:
    """What the test controls and reads: gates, cancelled calls, open streams, the journal."""

    def __init__(self) -> None:
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.cancelled: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.streams: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.buses: list[InMemorySubscriptionBus] = []
        self.journal: list[dict[str, Any]] = []

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/journal/{mark}", self._journal),
            Route("/gate/{key}", self._gate, methods=["POST"]),
            Route("/cancelled/{key}", self._cancelled),
            Route("/tools-changed", self._tools_changed, methods=["POST"]),
        ]

    async def _journal(self, request: Request) -> Response:
        mark = request.path_params["mark"]
        return JSONResponse([entry for entry in self.journal if entry["headers"].get(MARK) == mark])

    async def _gate(self, request: Request) -> Response:
        self.gates[request.path_params["key"]].set()
        return Response(status_code=204)

    async def _cancelled(self, request: Request) -> Response:
        """Answers as soon as the tool call with this key has been cancelled."""
        await self.cancelled[request.path_params["key"]].wait()
        return Response(status_code=204)

    async def _tools_changed(self, _: Request) -> Response:
        for bus in self.buses:
            await bus.publish(ToolsListChanged())
        return Response(status_code=204)


class Recorded:
    """ASGI middleware: writes the journal, and notes when a GET stream is open."""

    def __init__(self, app: ASGIApp, board: Board) -> None:
        self._app = app
        self._board = board

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        if MARK in headers:
            entry = {"method": scope["method"], "path": scope["path"], "headers": headers}
            self._board.journal.append(entry)

        async def watching(message: Message) -> None:
            await send(message)
            if scope["method"] == "GET" and message["type"] == "http.response.start":
                self._board.streams[headers.get("mcp-session-id", "")].set()

        await self._app(scope, receive, watching)


def ask_topping() -> Elicit[Topping]:
    return Elicit("Which topping?", Topping)


def ask_model() -> Sample:
    question = SamplingMessage(role="user", content=TextContent(type="text", text="A name?"))
    return Sample([question], max_tokens=9)


class Tools:
    """One tool per behaviour that a proxy could break."""

    def __init__(self, replica: str, board: Board) -> None:
        self._replica = replica
        self._board = board
        self._visits: Counter[str] = Counter()

    def all(self) -> list[Callable[..., Any]]:
        return [
            *(self.whoami, self.echo, self.fail, self.steps, self.linger),
            *(self.announce, self.order, self.christen, self.hang_up),
        ]

    def whoami(self, ctx: Ctx) -> Visit:
        session = (ctx.headers or {}).get("mcp-session-id")
        if session is None:
            return Visit(replica=self._replica, visit=None)
        self._visits[session] += 1
        return Visit(replica=self._replica, visit=self._visits[session])

    def echo(self, text: str) -> str:
        return text

    def fail(self) -> str:
        raise ToolError("on purpose")

    async def steps(self, key: str, count: int, ctx: Ctx) -> str:
        """Reports progress, then waits until the test has seen it; ``count`` times."""
        for number in range(1, count + 1):
            await ctx.report_progress(number, count, f"step {number}")
            await self._board.gates[f"{key}-{number}"].wait()
        return f"done by {self._replica}"

    async def linger(self, key: str, ctx: Ctx) -> str:
        """Never ends by itself."""
        await ctx.report_progress(0, 1, "started")
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            self._board.cancelled[key].set()
            raise

    async def announce(self, ctx: Ctx) -> str:
        """Notifies on the GET stream of this session, once that is open."""
        await self._board.streams[(ctx.headers or {})["mcp-session-id"]].wait()
        await ctx.session.send_tool_list_changed()
        await ctx.session.send_resource_updated("test://watched")
        return self._replica

    def order(self, answer: Annotated[Topping, Resolve(ask_topping)]) -> str:
        """Asks the user in the middle: elicitation, or another round trip, as the era has it."""
        return f"pizza with {answer.topping} from {self._replica}"

    def christen(self, answer: Annotated[CreateMessageResult, Resolve(ask_model)]) -> str:
        """Asks the client's model in the middle."""
        return answer.content.text if isinstance(answer.content, TextContent) else ""

    async def hang_up(self, key: str, ctx: Ctx) -> str:
        """Closes its own stream and goes on; the client must resume to get the result."""
        await ctx.close_sse_stream()
        await self._board.gates[key].wait()
        return f"resumed on {self._replica}"


def build(replica: str, board: Board) -> MCPServer[Any]:
    """An ordinary server with these tools."""
    bus = InMemorySubscriptionBus()
    board.buses.append(bus)
    server: MCPServer[Any] = MCPServer(
        "e2e",
        log_level="ERROR",
        extensions=[Vendor(replica)],
        request_state_security=RequestStateSecurity(keys=[STATE_KEY]),
        subscriptions=bus,
    )
    for tool in Tools(replica, board).all():
        server.add_tool(tool)
    return server


def application(replica: str, authority: str) -> ASGIApp:
    board = Board()
    guard = TransportSecuritySettings(allowed_hosts=[authority])
    apps = []
    for mode, options in MODES.items():
        store = Events() if mode == "resumable" else None
        apps.append(
            build(replica, board).streamable_http_app(
                streamable_http_path=f"/{mode}", transport_security=guard, event_store=store, **options
            )
        )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for app in apps:
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield

    routes = [route for app in apps for route in app.routes]
    return Recorded(Starlette(routes=[*routes, *board.routes()], lifespan=lifespan), board)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--fd", required=True, type=int)
    options = parser.parse_args()
    listening = socket.socket(fileno=options.fd)
    host, port = listening.getsockname()
    app = application(options.name, f"{host}:{port}")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
