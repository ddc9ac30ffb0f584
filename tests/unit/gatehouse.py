"""A gateway between clients and backends that are all in the test's hands."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from mcp_proxy.admission import Porter
from mcp_proxy.backends import Backend
from mcp_proxy.exchange import Exchange
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.gateway import Gateway
from mcp_proxy.keeper import SessionKeeper
from mcp_proxy.policy import Identify, Principal, anonymous
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.pools import Pool
from mcp_proxy.quotas import Quotas
from mcp_proxy.recorder import Recorder
from mcp_proxy.sessions import SessionKey, SessionStore
from mcp_proxy.sessions.memory import MemoryStore
from mcp_proxy.tasks import Tasks
from mcp_proxy.telemetry import RequestRecord
from mcp_proxy.watch import SessionWatch
from mcp_proxy.wire import Headers, Rejection, Request
from tests.unit.actors import Attempt, ScriptedTransport, StrictReply
from tests.unit.poolside import pool_of
from tests.unit.slow_store import SlowStore

HOLD = 1000
STREAMS = 3
JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream")
SESSION = b"mcp-session-id"


ROUTE = "/mcp"
KEY = SessionKey(ROUTE, b"s1")


class Journal:
    """Implements Sink and Meters."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.events: list[tuple[str, ...]] = []

    def record(self, record: RequestRecord) -> None:
        self.records.append(record)

    def lookup(self, store: str, result: str) -> None:
        self.events.append(("lookup", store, result))

    def store_error(self, operation: str) -> None:
        self.events.append(("store_error", operation))

    def reinitialized(self, pool: str, result: str) -> None:
        self.events.append(("reinitialized", pool, result))

    def upstream_failure(self, pool: str, phase: str) -> None:
        self.events.append(("upstream_failure", pool, phase))

    def stream_opened(self, pool: str) -> None:
        self.events.append(("opened", pool))

    def stream_closed(self, pool: str, reason: str) -> None:
        self.events.append(("closed", pool, reason))


class Client:
    """One request: what came of it."""

    def __init__(self, reply: StrictReply, exchange: Exchange | None, refusal: Rejection | None) -> None:
        self.reply = reply
        self.exchange = exchange
        self.refusal = refusal

    def leave(self) -> None:
        assert self.exchange is not None
        self.reply.leave(self.exchange)

    @property
    def verdict(self) -> tuple[int, str]:
        """Status and the proxy's own word."""
        return self.reply.status, self.reply.reason

    @property
    def error(self) -> Any:
        return json.loads(self.reply.body)["error"]


class Gatehouse:
    """``ask`` plays a client; ``attempts`` are the requests that reached backends."""

    def __init__(
        self,
        backends: int = 2,
        *,
        store: Callable[[Gatehouse], SessionStore] | None = None,
        listen_host: str = "0.0.0.0",
        external_url: str | None = None,
        authorization: bytes | None = None,
        lost_after_s: float = 10.0,
        ttl_s: float = 3600.0,
        reinitializes: bool = False,
        identify: Identify = anonymous,
        pool: type[Pool] = Pool,
        **of_pool: Any,
    ) -> None:
        self.journal = Journal()
        self.attempts: list[Attempt] = []
        self.tasks = Tasks()
        self.transports: dict[str, ScriptedTransport] = {}
        self.pool = pool_of(
            self._dial,
            *(f"backend{number}.example" for number in range(backends)),
            kind=pool,
            tasks=self.tasks,
            lost_after_s=lost_after_s,
            authorization=authorization,
            reinitializes=reinitializes,
            **of_pool,
        )
        self.backends = self.pool.backends
        self.forwarder = Forwarder(())
        guard = OriginGuard(listen_host, external_url)
        porter = Porter({ROUTE.encode(): "pool"}, guard, self.forwarder, identify)
        self.watch = SessionWatch({ROUTE: self.pool})
        self.store: Any = store(self) if store else MemoryStore(ttl_s, self.watch)
        self.gateway = Gateway(
            porter=porter,
            forwarder=self.forwarder,
            pools={"pool": self.pool},
            keeper=SessionKeeper(self.store, self.tasks, self.journal, ttl_s=ttl_s),
            watch=self.watch,
            tasks=self.tasks,
            recorder=Recorder({"journal": self.journal}),
            meters=self.journal,
            body_limit=100_000,
            json_hold=HOLD,
            quotas=Quotas(streams=STREAMS, requests=1000),
        )

    def _dial(self, backend: Backend) -> ScriptedTransport:
        return self.transports.setdefault(backend.id, ScriptedTransport(backend.id, self.attempts))

    # -- clients -------------------------------------------------------------------------------

    def ask(
        self,
        body: bytes = b"",
        *headers: tuple[bytes, bytes],
        method: bytes = b"POST",
        target: bytes = b"/mcp",
    ) -> Client:
        pairs: Headers = [(b"host", b"proxy.example"), JSON, *headers]
        request = Request(method, target, pairs, "192.0.2.7", "http")
        reply = StrictReply()
        admission = self.gateway.admit(request)
        if isinstance(admission, Rejection):
            self.gateway.refuse(request, admission, reply)
            return Client(reply, None, admission)
        return Client(reply, self.gateway.handle(admission, body, reply), None)

    def listen(self, session: bytes = b"s1") -> Client:
        return self.ask(b"", (SESSION, session), method=b"GET")

    def call(self, session: bytes = b"s1", method: str = "tools/call") -> Client:
        return self.ask(legacy(method), (SESSION, session))

    def open_session(self, session: bytes = b"s1") -> str:
        """A session; returns the id of its backend."""
        self.ask(initialize())
        attempt = self.take()
        attempt.answer(200, b"{}", (SESSION, session))
        self.journal.records.clear()
        self.journal.events.clear()
        return attempt.backend

    # -- backends ------------------------------------------------------------------------------

    def take(self) -> Attempt:
        """The only attempt since the last take."""
        (attempt,) = self.attempts
        self.attempts.clear()
        return attempt

    @property
    def tried(self) -> list[str]:
        return [attempt.backend for attempt in self.attempts]

    def find(self, backend_id: str) -> Backend:
        backend = self.pool.find(backend_id)
        assert backend is not None
        return backend

    # -- afterwards ----------------------------------------------------------------------------

    def assert_quiet(self) -> None:
        """Whatever happened, nothing is held any more."""
        gateway = self.gateway
        assert not gateway.live
        assert gateway.quotas.streams == 0
        assert self.pool.streams == 0
        assert [(backend.inflight, backend.streams) for backend in self.backends] == [(0, 0)] * len(
            self.backends
        )
        assert all(attempt.is_over for attempt in self.attempts)
        assert len(gateway.discover_due) == 0
        assert len(self.tasks) == 0
        opened = self.journal.events.count(("opened", "pool"))
        assert opened == sum(event[0] == "closed" for event in self.journal.events)

    @property
    def record(self) -> RequestRecord:
        """The only record."""
        (record,) = self.journal.records
        return record


USER = b"authorization"


def by_header(request: Request) -> Principal | None:
    """Implements Identify: whatever the Authorization header says."""
    user = next((value for name, value in request.headers if name == USER), None)
    return None if user is None else Principal("test", user.decode())


def slow_house(**options: Any) -> tuple[Gatehouse, SlowStore]:
    house = Gatehouse(2, store=lambda house: SlowStore(), **options)
    return house, house.store


def message(method: str, params: dict[str, object] | None = None, id: object = 7) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}}).encode()


def initialize() -> bytes:
    return message("initialize", {"protocolVersion": "2025-11-25"})


def legacy(method: str) -> bytes:
    return message(method, {"name": "x"} if method == "tools/call" else None)


VERSION = "2026-07-28"


def modern(method: str, **params: object) -> tuple[Any, ...]:
    """Arguments for ``ask``: a message of the 2026 revision and its headers."""
    name = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}.get(method)
    if name:
        params = {name: "x", **params}
    meta = {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers: list[tuple[bytes, bytes]] = [
        (b"mcp-protocol-version", VERSION.encode()),
        (b"mcp-method", method.encode()),
    ]
    if name:
        headers.append((b"mcp-name", b"x"))
    return (message(method, {**params, "_meta": meta}), *headers)


def names(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    return [name for name, _ in headers]
