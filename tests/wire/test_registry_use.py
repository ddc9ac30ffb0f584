"""A session lives while it is used, by whatever replica and in whatever way, and ends when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.tools.client import Client, call, post
from tests.tools.mcp_backend import JSON, result
from tests.tools.recording import Conn, Seen
from tests.wire.registry_rig import Replicas, Server, Session
from tests.wire.registry_site import SHARED, case, registry, replicas

LIVES = 3.5
"""So many times the life of an unused session is long."""


@pytest.fixture(scope="module")
def ttl_s(store: str) -> int:
    """The second store shares what matters with the first, and may hurry."""
    return 2 if store == "redis" else 1


@pytest.fixture(scope="module", params=SHARED)
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
async def shared(store: str, ttl_s: int, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    over = {"sessions": {"ttl": f"{ttl_s}s"}}
    with registry(store) as redis:
        async with replicas(folder, store, redis=redis, over=over) as site:
            yield site


@pytest.fixture
async def site(shared: Replicas) -> AsyncIterator[Replicas]:
    async with case(shared):
        yield shared


class Slow:
    """A tool that answers when it is told to."""

    def __init__(self, server: Server) -> None:
        self.tell = server.tool
        self.done = asyncio.Event()

    async def __call__(self, request: Seen, conn: Conn) -> None:
        if b"slow" not in request.body:
            await self.tell(request, conn)
            return
        await self.done.wait()
        await conn.answer(200, [JSON], result({"id": 0}, slow=True))


async def hold(site: Replicas, at: int, session: Session) -> Client:
    """A call that is not answered yet."""
    client = await Client.connect(site.proxies[at].port)
    site.streams.append(client)
    await client.send(post(call(0, "tools/call", "slow"), *session.lines, target=session.path))
    site.expect("POST 0")
    return client


def lives(site: Replicas) -> list[int]:
    """How long the sessions in Redis have to live, in milliseconds; -1 is for ever."""
    assert site.redis is not None
    found = []
    for key in site.redis.command("KEYS", "*:session:*"):
        value, ttl_ms = site.redis.command("GET", key), site.redis.command("PTTL", key)
        if value is not None and ttl_ms != -2 and b"ended" not in value:
            found.append(ttl_ms)
    return found


async def uptime_s(site: Replicas) -> float:
    return float((await site.proxies[0].status())["uptime_s"])


class Kinds:
    """Sessions that are used in different ways, of every pool one."""

    def __init__(self) -> None:
        self.streaming: list[Session] = []
        self.calling: list[Session] = []
        self.chatting: list[Session] = []

    @property
    def all(self) -> list[Session]:
        return [*self.streaming, *self.calling, *self.chatting]


async def begin(site: Replicas) -> Kinds:
    kinds = Kinds()
    for path in ("/mcp", "/moving"):
        # The replica that will hold the stream of one of them has not seen it begin.
        kinds.streaming += [await site.open(at, path=path) for at in (0, 1)]
        kinds.calling += [await site.open(0, path=path)]
        kinds.chatting += [await site.open(0, path=path)]
    return kinds


async def test_a_session_in_use_outlives_its_time_and_an_unused_one_does_not(
    site: Replicas, ttl_s: int
) -> None:
    slow = {server: Slow(server) for server in site.servers}
    for server, tool in slow.items():
        server.tool = tool
    kinds, unused = await begin(site), await site.open(0)
    streams = [await site.listen(0, session) for session in kinds.streaming]
    calls = [await hold(site, 0, session) for session in kinds.calling]
    began_s = await uptime_s(site)

    async def is_long_ago() -> bool:
        for session in kinds.chatting:
            await site.works(0, session)
        assert -1 not in lives(site)
        return await uptime_s(site) - began_s > LIVES * ttl_s

    await site.until(is_long_ago, "three lives have passed")
    for server, tool in slow.items():
        tool.done.set()
        server.tool = tool.tell
    for client in calls:
        assert (await client.answer()).json["result"] == {"slow": True}
    for session in kinds.all:
        await site.works(1, session)
        await site.works(0, session)
    for client, stream in streams:
        await stream.send(b"data: still there\n\n")
        await client.body_until(b"still there")
        await stream.end()
    if site.store == "redis":
        await site.unknown(1, unused)
        await site.unknown(0, unused)
    else:
        await site.works(1, unused)  # its id says it, whatever the time


async def test_a_session_that_nobody_uses_is_forgotten_everywhere(site: Replicas) -> None:
    session = await site.open(0)
    await site.works(1, session)

    async def is_forgotten() -> bool:
        return not await site.metric("sessions") and not lives(site)

    await site.until(is_forgotten, "replicas and Redis have let it go")
    if site.store == "redis":
        for at in (0, 1):
            await site.unknown(at, session)


async def test_a_stranger_does_not_keep_a_session_alive(site: Replicas) -> None:
    """Requests on another route are no use of it."""
    if site.store != "redis":
        return
    session = await site.open(0)

    async def is_gone() -> bool:
        other = Session(session.id, "/again", "", ())
        await site.unknown(0, other)
        await site.unknown(1, other)
        return not lives(site)

    await site.until(is_gone, "it has expired")
    await site.unknown(0, session)
