"""The bench of the registry: several replicas of the real proxy, one registry, several backends,
all from one configuration, and the check that follows every case.

Rules of this file: a case that uses ``call``, ``open``, ``delete`` and ``listen`` keeps a ledger: what was
answered by a backend must have arrived there exactly once, what the proxy refused must not have
arrived at all. Requests that replicas send on their own account are added by the case
(``expect``). ``check`` proves the ledger, that nothing is held, that Redis holds nothing but
expiring keys of ours, that nothing secret was said, and that the next clean conversation works.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, get, post
from tests.tools.fault_proxy import FaultProxy
from tests.tools.mcp_backend import JSON, McpServer, Stream, result
from tests.tools.proxy import ProxyProcess
from tests.tools.recording import Conn, Seen
from tests.tools.redis_server import RedisServer

KEY = "planted-session-key-of-32-characters-or-more-7c1d"
PASSWORD = "planted-redis-password-7c1d"
PREFIX = "mcp-proxy:"

SLACK = 2 + 16
"""Descriptors that may differ: an admin connection that is just being closed, and the like; and those
to Redis, of which a replica keeps as many as it has needed, but no more than sixteen."""


class Server(McpServer):
    """A session server that says with every answer who it is and which session it took it for."""

    def __init__(self, name: str) -> None:
        super().__init__(name, tool=self._tell)

    async def _tell(self, request: Seen, conn: Conn) -> None:
        message = json.loads(await request.whole())
        if "id" in message:
            await conn.answer(200, [JSON], self.told(message, request))
        else:
            await conn.answer(202, [])

    def told(self, message: dict[str, Any], request: Seen) -> bytes:
        session = (request.head.one("mcp-session-id") or b"").decode()
        return result(message, server=self.name, session=session)


class Session:
    """One session, as its client knows it, and what backends said of it."""

    def __init__(self, id_: str, path: str, server: str, fields: Sequence[str], number: int = 0) -> None:
        self.id = id_
        self.path = path
        self.server = server
        """Name of the backend that made it."""
        self.upstream = ""
        """How that backend calls it, once it has said so."""
        self.fields = fields
        self.number = number
        """JSON-RPC id of its ``initialize``."""

    @property
    def lines(self) -> tuple[str, ...]:
        return (f"Mcp-Session-Id: {self.id}", *self.fields)


class Replicas:
    """What a case works with. Replicas are named by their number."""

    def __init__(
        self,
        store: str,
        proxies: list[ProxyProcess],
        backends: list[Backend],
        redis: RedisServer | None,
        lines: list[FaultProxy],
    ) -> None:
        self.store = store
        self.proxies = proxies
        self.backends = backends
        self.redis = redis
        self.lines = lines
        """Between each replica and Redis."""
        self.registry_ports = {line.port for line in lines}
        """Where replicas may keep connections."""
        self.streams: list[Client] = []
        self.said: set[str] = set()
        """Session ids; none may be written anywhere."""
        self.numbers = itertools.count(1)
        self.asked = 0
        """Requests so far, without streams."""
        self._idle: list[list[Client]] = [[] for _ in proxies]
        self.expected: Counter[str] = Counter()
        """Requests that backends should have got in this case."""
        self._received: list[Seen] = []
        self._base = [0] * len(proxies)
        self._logs = [0] * len(proxies)

    @property
    def servers(self) -> list[Server]:
        return [backend.handler for backend in self.backends if isinstance(backend.handler, Server)]

    def backend_of(self, session: Session) -> Backend:
        return next(each for each in self.backends if each.handler.name == session.server)  # type: ignore[attr-defined]

    def others(self, session: Session) -> list[Backend]:
        return [each for each in self.backends if each is not self.backend_of(session)]

    # -- requests ------------------------------------------------------------------------------

    async def ask(self, at: int, request: bytes, method: str = "POST", key: str = "") -> Answer:
        """``key``: how the ledger calls the request."""
        client = self._idle[at].pop() if self._idle[at] else await Client.connect(self.proxies[at].port)
        answer = await client.ask(request, method)
        self.asked += 1
        if answer.says_close:
            client.close()
        else:
            self._idle[at].append(client)
        assert answer.framing == "clean"
        if key and not answer.reason and answer.status != 204:  # which no backend here says
            self.expected[key] += 1
        return answer

    async def post(self, at: int, method: str, *fields: str, path: str = "/mcp", **params: Any) -> Answer:
        number = next(self.numbers)
        body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
        return await self.ask(at, post(body, *fields, target=path), "POST", f"POST {number}")

    async def initialize(self, at: int, *fields: str, path: str = "/mcp") -> Answer:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}}
        return await self.post(at, "initialize", *fields, path=path, **params, clientInfo={"name": "test"})

    async def open(self, at: int, *fields: str, path: str = "/mcp") -> Session:
        """A new session."""
        answer = await self.initialize(at, *fields, path=path)
        assert answer.status == 200, answer
        id_ = (answer.head.one("mcp-session-id") or b"").decode()
        self.said.add(id_)
        name = answer.json["result"]["serverInfo"]["name"]
        return Session(id_, path, name, fields, answer.json["id"])

    async def call(self, at: int, session: Session, method: str = "tools/call") -> Answer:
        return await self.post(at, method, *session.lines, path=session.path, name="echo")

    async def works(self, at: int, session: Session) -> None:
        """A call is answered by the session's backend, which means the same session as ever."""
        answer = await self.call(at, session)
        assert answer.status == 200, answer
        told = answer.json["result"]
        self.said.add(told["session"])
        session.upstream = session.upstream or told["session"]
        assert (told["server"], told["session"]) == (session.server, session.upstream)

    async def refused(self, at: int, session: Session, status: int, reason: str) -> Answer:
        """A call is answered by the proxy itself."""
        answer = await self.call(at, session)
        assert (answer.status, answer.reason) == (status, reason), answer
        assert (answer.head.one("retry-after") is not None) == (status == 503)
        return answer

    async def unavailable(self, at: int, session: Session) -> Answer:
        return await self.refused(at, session, 503, "store_unavailable")

    async def unknown(self, at: int, session: Session) -> Answer:
        return await self.refused(at, session, 404, "session_not_found")

    async def disowned(self, at: int, session: Session) -> None:
        """The answer is the backend's own 404."""
        answer = await self.call(at, session)
        assert (answer.status, answer.reason) == (404, ""), answer

    async def delete(self, at: int, session: Session) -> Answer:
        number = next(self.numbers)
        request = get(*session.lines, f"X-Test-Number: {number}", target=session.path, method="DELETE")
        return await self.ask(at, request, "DELETE", f"DELETE {number}")

    async def listen(self, at: int, session: Session, *fields: str) -> tuple[Client, Stream]:
        """The stream of the session, at both of its ends."""
        number = next(self.numbers)
        client = await Client.connect(self.proxies[at].port)
        self.streams.append(client)
        await client.send(get(*session.lines, f"X-Test-Number: {number}", *fields, target=session.path))
        assert (await client.head("GET")).status == 200
        self.expect(f"GET {number}")
        return client, await self.backend_of(session).handler.streams.next()  # type: ignore[attr-defined]

    # -- the ledger ----------------------------------------------------------------------------

    def expect(self, *keys: str) -> None:
        """Requests that backends get besides: ``POST <id>``, ``POST <method>`` of a notification,
        ``DELETE <number of the request>``."""
        self.expected.update(keys)

    def received(self) -> list[Seen]:
        """Everything that backends got in this case."""
        for backend in self.backends:
            self._received += backend.take()
        return self._received

    def counted(self) -> Counter[str]:
        return Counter(map(_key, self.received()))

    # -- what is held --------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool | Awaitable[bool]], what: str, at: int = 0) -> None:
        """Bounded; replica ``at`` turns its loop between two questions."""

        async def holds() -> bool:
            value = condition()
            return value if isinstance(value, bool) else await value

        await self.proxies[at].until(holds, what)

    async def metric(self, name: str, **labels: str) -> float:
        """Sum over all replicas."""
        return sum([await proxy.metric(f"mcp_proxy_{name}", **labels) for proxy in self.proxies])

    def log(self) -> str:
        """What replicas have logged in this case."""
        logs = zip(self.proxies, self._logs, strict=True)
        return "".join(proxy._err.read_bytes()[start:].decode() for proxy, start in logs)

    async def health(self, at: int) -> str:
        answer = await self.proxies[at].admin("/readyz?verbose")
        assert answer.status == 200, "a registry that fails must not take replicas out of rotation"
        return answer.body.decode()

    async def settled(self) -> None:
        """Every replica reaches the registry and hears of changes."""
        said = [""]
        for at in range(len(self.proxies)):

            async def is_well(at: int = at) -> bool:
                said[0] = await self.health(at)
                return "degraded" not in said[0] and "not subscribed" not in said[0]

            await self.until(is_well, "the registry is reached", at)

    async def quiet(self) -> None:
        """No exchange and no stream is left, in replicas and at backends."""
        for proxy in self.proxies:

            async def is_quiet(proxy: ProxyProcess = proxy) -> bool:
                busy = [conn for backend in self.backends for conn in backend.busy]
                open_streams = await proxy.metric("mcp_proxy_open_streams")
                return not (busy or open_streams or await proxy.metric("mcp_proxy_inflight"))

            await proxy.until(is_quiet, "no exchange in progress")

    def _held(self, at: int) -> int:
        """Descriptors besides idle connections to backends and to the registry."""
        kept = _sockets_to({backend.port for backend in self.backends} | self.registry_ports)
        pid = self.proxies[at].pid
        links = [_link(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
        return sum(link not in kept for link in links)

    async def begin(self) -> None:
        """Remember the state that every case must return to."""
        for backend in self.backends:
            backend.violations.clear()
        for proxy in self.proxies:
            await proxy.admin("/livez")
        await self.quiet()
        self.received()
        self._received.clear()
        self.expected.clear()
        self._base = [self._held(at) for at in range(len(self.proxies))]
        self._logs = [proxy.log_size() for proxy in self.proxies]

    def hang_up(self) -> None:
        for client in (*self.streams, *itertools.chain(*self._idle)):
            client.close()
        self.streams.clear()
        self._idle = [[] for _ in self.proxies]

    async def check(self) -> None:
        """The check after every case."""
        self.hang_up()
        await self.quiet()
        await self.converse()
        assert self.counted() == self.expected, "a backend got what nobody expected, or twice"
        for at, proxy in enumerate(self.proxies):

            async def is_back(at: int = at) -> bool:
                return self._held(at) <= self._base[at] + SLACK

            await proxy.until(is_back, f"{self._held(at)} descriptors back to {self._base[at]}")
            assert proxy.traceback(self._logs[at]) == ""
        for backend in self.backends:
            assert backend.violations == []
        await self.assert_discreet()
        if self.redis is not None:
            assert_tidy(self.redis)

    async def converse(self) -> None:
        """A session that begins on each replica, is used on the next and ends there."""
        for at in range(len(self.proxies)):
            session = await self.open(at)
            other = (at + 1) % len(self.proxies)
            await self.works(other, session)
            await self.works(at, session)
            assert (await self.delete(other, session)).status == 200
        self.hang_up()
        await self.quiet()

    async def assert_discreet(self) -> None:
        """No session id and no secret in any output, metric or status."""
        for server in self.servers:
            self.said |= server.sessions
        secrets = {*self.said, KEY, PASSWORD} - {""}
        for proxy in self.proxies:
            said = proxy.output + await proxy.metrics() + json.dumps(await proxy.status())
            assert [secret for secret in secrets if secret in said] == []


def _key(request: Seen) -> str:
    method = request.method.decode()
    if method != "POST":
        return f"{method} {(request.head.one('x-test-number') or b'').decode()}"
    message = json.loads(request.body)
    return f"POST {message.get('id', message['method'])}"


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _sockets_to(ports: set[int]) -> set[str]:
    """Connections of this machine to these ports, as /proc/PID/fd names them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if int(row[2].rpartition(":")[2], 16) in ports}


def assert_tidy(redis: RedisServer) -> None:
    """Every key is ours and expires; nobody has tried to touch another."""
    for key in map(bytes.decode, redis.command("KEYS", "*")):
        assert key.startswith(PREFIX)
        assert redis.command("PTTL", key) != -1, key
    assert redis.command("ACL", "LOG") == []
