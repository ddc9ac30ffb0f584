"""``/events``: what readers hear, what slow ones miss, and that nobody is asked when nobody reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from mcp_proxy.admin.app import create_admin
from mcp_proxy.admin.feed import READERS, Feed, Reader
from mcp_proxy.telemetry.recent import SIZE, Recent
from tests.tools import PATIENCE_S
from tests.unit.operated import CALL, ONE, TWO, Operated, call
from tests.unit.running import serving

Event = tuple[str, dict[str, Any]]


@pytest.fixture
def view() -> Operated:
    return Operated()


@pytest.fixture
async def client(view: Operated) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        serving(create_admin(view, None)) as address,
        httpx2.AsyncClient(base_url=f"http://{address}", timeout=PATIENCE_S) as client,
    ):
        yield client


class Listener:
    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Event:
        """The next event; heartbeats are passed over."""
        async with asyncio.timeout(PATIENCE_S):
            async for line in self._lines:
                if line.startswith("event: "):
                    data = await anext(self._lines)
                    assert await anext(self._lines) == ""
                    return line.removeprefix("event: "), json.loads(data.removeprefix("data: "))
        raise EOFError

    async def is_over(self) -> bool:
        async with asyncio.timeout(PATIENCE_S):
            return [line async for line in self._lines] == []


@asynccontextmanager
async def listening(client: httpx2.AsyncClient) -> AsyncIterator[Listener]:
    async with client.stream("GET", "/events") as response:
        yield Listener(response)


async def is_heard(client: httpx2.AsyncClient) -> bool:
    async with listening(client) as listener:
        return listener.response.status_code == 200


async def test_an_exchange_is_heard_by_everybody_who_listens(
    view: Operated, client: httpx2.AsyncClient
) -> None:
    async with listening(client) as one, listening(client) as other:
        view.ring.record(call(name="get_forecast", status=503, reason="no_backend"))
        events = [await one.next(), await other.next()]

    assert events[0] == events[1]
    kind, data = events[0]
    assert kind == "exchange"
    assert (data["name"], data["status"], data["reason"]) == ("get_forecast", 503, "no_backend")
    assert data["session"] == CALL.session


async def test_the_answer_is_a_stream_that_nobody_in_between_holds_back(
    view: Operated, client: httpx2.AsyncClient
) -> None:
    async with listening(client) as listener:
        headers = listener.response.headers

    assert headers["content-type"] == "text/event-stream"
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store"
    head = await client.head("/events")
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream")


async def test_a_change_of_a_backend_is_heard(view: Operated, client: httpx2.AsyncClient) -> None:
    async with listening(client) as listener:
        view.set("weather", TWO, state="up")
        event = await listener.next()
        del view.pools["other"][ONE]
        last = await listener.next()

    assert event == ("backend", {"pool": "weather", "id": TWO, "state": "up", "was": "down"})
    assert last == ("backend", {"pool": "other", "id": ONE, "state": None, "was": "up"})


async def test_what_the_proxy_could_not_keep_is_told(view: Operated, client: httpx2.AsyncClient) -> None:
    async with listening(client) as listener:
        for _ in range(SIZE + 7):
            view.ring.record(CALL)
        events = [await listener.next() for _ in range(SIZE + 1)]

    assert events[0] == ("missed", {"missed": 7})
    assert {kind for kind, _ in events[1:]} == {"exchange"}


async def test_the_stream_ends_when_the_proxy_drains(view: Operated, client: httpx2.AsyncClient) -> None:
    async with listening(client) as listener:
        view.ring.record(call(name="the last"))
        view.is_draining = True

        assert (await listener.next())[1]["name"] == "the last"
        assert await listener.next() == ("end", {"reason": "draining"})
        assert await listener.is_over()
    async with listening(client) as late:
        assert await late.next() == ("end", {"reason": "draining"})


async def test_the_stream_ends_when_the_proxy_cannot_be_asked(
    view: Operated, client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(client) as listener:
        view.broken = RuntimeError("secret detail")
        assert await listener.next() == ("end", {"reason": "failed"})
        assert await listener.is_over()

    assert "a task failed" in caplog.text
    view.broken = None
    async with listening(client) as again:
        view.ring.record(CALL)
        assert (await again.next())[0] == "exchange"


async def test_one_reader_too_many_is_refused_and_a_place_becomes_free(
    view: Operated, client: httpx2.AsyncClient
) -> None:
    feed = Feed(view)
    readers = [await feed.join() for _ in range(READERS)]

    assert await feed.join() is None
    assert readers[0] is not None
    feed.leave(readers[0])
    assert await feed.join() is not None


async def test_the_refusal_of_a_reader_says_when_to_come_again(
    view: Operated, client: httpx2.AsyncClient
) -> None:
    async with asyncio.TaskGroup() as group:
        full, done = asyncio.Semaphore(0), asyncio.Event()

        async def hold() -> None:
            async with listening(client):
                full.release()
                await done.wait()

        for _ in range(READERS):
            group.create_task(hold())
        for _ in range(READERS):
            await full.acquire()
        refused = await client.get("/events")
        done.set()

    assert refused.status_code == 503
    assert refused.json()["error"]["reason"] == "too_many_readers"
    assert refused.headers["retry-after"] == "5"
    async with asyncio.timeout(PATIENCE_S):
        while not await is_heard(client):  # the proxy has to notice first that the others have gone
            pass


async def test_when_the_last_reader_has_gone_nobody_asks(view: Operated) -> None:
    feed = Feed(view, poll_s=0.0)
    readers = [reader for _ in range(2) if (reader := await feed.join()) is not None]
    for reader in readers:
        feed.leave(reader)
        feed.leave(reader)
    asked = view.questions

    for _ in range(100):
        await asyncio.sleep(0)

    assert view.questions == asked
    again = await feed.join()
    assert again is not None
    assert view.questions > asked
    feed.leave(again)


async def test_readers_share_the_questions(view: Operated) -> None:
    feed = Feed(view, poll_s=3600.0)
    for _ in range(5):
        await feed.join()

    assert view.questions == 1
    assert len(feed) == 5


async def test_a_reader_that_gives_up_before_the_first_answer_leaves() -> None:
    class Slow(Operated):
        async def recent(self, cursor: str) -> Recent:
            await asyncio.Event().wait()
            raise AssertionError

    feed = Feed(Slow())
    joining = asyncio.ensure_future(feed.join())
    await asyncio.sleep(0)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining

    assert len(feed) == 0


# --- one reader -------------------------------------------------------------------------------------


async def taken(chunks: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(chunks)


async def test_a_reader_hears_a_heartbeat_when_there_is_nothing_else() -> None:
    chunks = Reader(4, heartbeat_s=0.001).chunks()

    assert [await taken(chunks) for _ in range(3)] == [b":\n\n"] * 3


async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many() -> None:
    reader = Reader(3, heartbeat_s=PATIENCE_S)
    chunks = reader.chunks()
    await taken(chunks)
    for number in range(10):
        reader.give(b"%d" % number)
    reader.miss(5)

    assert await taken(chunks) == b'event: missed\ndata: {"missed":12}\n\n789'
    reader.give(b"next")
    assert await taken(chunks) == b"next"


async def test_a_reader_gets_what_is_there_before_the_end() -> None:
    reader = Reader(3, heartbeat_s=PATIENCE_S)
    reader.give(b"last")
    reader.end()

    assert [chunk async for chunk in reader.chunks()] == [b":\n\n", b"last"]
