"""The sizes that the door accepts: exactly at each limit, and one above."""

from __future__ import annotations

import pytest

from mcp_proxy.downstream.http11 import PIPELINE_LIMIT
from mcp_proxy.downstream.reader import CHUNK_OVERHEAD, TARGET_LIMIT
from mcp_proxy.headers import VALUE_LIMIT
from tests.unit.doorway import BODY_LIMIT, CHUNKED, Door, ScriptedHandler, chunked, get, post

# -- sizes -------------------------------------------------------------------------------------


def _head_of(size: int) -> bytes:
    fields = [b"X-%04d: %b" % (number, b"x" * 991) for number in range(size // 1001 - 1)]
    head = get(*fields)
    return get(*fields, b"Y: " + b"y" * (size - len(head) - 5))


@pytest.mark.parametrize("step", [0, 1, 4])
async def test_the_head_limit_is_exact(step: int) -> None:
    limit = 32 * 1024
    for size, statuses in ((limit, [200]), (limit + 1, [431])):
        wire = _head_of(size)
        assert len(wire) == size
        door = Door()
        door.feed_cut(wire, range(0, size, 1000) if step == 1 else [size - step] if step else [])
        assert [answer.status for answer in door.responses(b"GET")] == statuses


async def test_an_endless_head_is_refused_as_soon_as_it_is_too_long() -> None:
    door = Door()
    door.feed(get()[:-2], *[b"X: %b\r\n" % (b"x" * 1000)] * 32)
    assert door.sent == b""
    door.feed(b"X: %b\r\n" % (b"x" * 1000))
    assert (door.response().status, door.handler.reasons) == (431, ["head_too_large"])


async def test_an_endless_request_line_is_a_414() -> None:
    door = Door()
    door.feed(b"GET /", *[b"x" * 1000] * 40)
    assert (door.response(b"GET").status, door.handler.reasons) == (414, ["uri_too_long"])


@pytest.mark.parametrize("prefix", [b"/", b"http://door.example/"], ids=["path", "absolute"])
async def test_the_target_limit_is_exact(prefix: bytes) -> None:
    for size, status in ((TARGET_LIMIT, 200), (TARGET_LIMIT + 1, 414)):
        door = Door()
        path = prefix + b"x" * (size - 1)
        door.feed(get(target=path))
        assert door.response(b"GET").status == status


async def test_the_limit_of_one_value_is_exact() -> None:
    for size, status in ((VALUE_LIMIT, 200), (VALUE_LIMIT + 1, 431)):
        door = Door()
        door.feed(get(b"X: " + b"x" * size))
        assert door.response(b"GET").status == status


async def test_the_limit_of_fields_is_exact() -> None:
    for count, status in ((99, 200), (100, 431)):  # and Host
        door = Door()
        door.feed(get(*[b"X: y"] * count))
        assert door.response(b"GET").status == status


async def test_the_limit_of_a_body_by_length_is_exact_and_judged_by_the_head() -> None:
    for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413)):
        door = Door()
        door.feed(post(b"x" * size)[: 300 if status == 413 else None])
        assert door.response().status == status


@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
async def test_the_limit_of_a_chunked_body_is_exact(is_cut: bool) -> None:
    for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413)):
        door = Door()
        wire = post(chunked(b"x" * (size - 1), b"x"), framing=CHUNKED)
        door.feed_cut(wire, range(0, len(wire), 997) if is_cut else [])
        assert door.responses()[0].status == status


OVERHEAD = {
    "an endless extension": b"5;" + b"x" * (CHUNK_OVERHEAD + 100),
    "leading zeros": b"0" * (CHUNK_OVERHEAD + 100),
    "endless trailers": chunked(b"hello")[:-2] + b"X: y\r\n" * (CHUNK_OVERHEAD // 6 + 20),
    "extensions on many chunks": b"1;%b\r\nx\r\n" % (b"e" * 100) * 200,
    "chunks of one byte": b"1\r\nx\r\n" * 6000,
}


@pytest.mark.parametrize("body", OVERHEAD.values(), ids=OVERHEAD.keys())
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
async def test_framing_larger_than_the_body_is_refused(body: bytes, is_cut: bool) -> None:
    door = Door()
    wire = post(body, framing=CHUNKED)
    door.feed_cut(wire, range(0, len(wire), 997) if is_cut else [])
    assert (door.response().status, len(door.served)) == (400, 0)


async def test_what_is_behind_a_chunked_body_does_not_count_as_its_framing() -> None:
    door = Door()
    door.feed(post(chunked(b"small"), framing=CHUNKED) + post(b"x" * 2 * CHUNK_OVERHEAD))
    await door.settled()
    assert [len(served.body) for served in door.served] == [5, 2 * CHUNK_OVERHEAD]


async def test_the_limit_of_pipelined_bytes_is_exact_and_ends_the_exchange() -> None:
    for size, is_over in ((PIPELINE_LIMIT, False), (PIPELINE_LIMIT + 1, True)):
        handler = ScriptedHandler()
        handler.respond = None
        door = Door(handler)
        door.feed(post(b"a"), b"x" * (size - 100), b"x" * 100)
        await door.settled()
        assert (door.transport.fate == "aborted") is is_over
        assert door.served[0].conversation.events == (["disconnect"] if is_over else [])


async def test_a_hundred_pipelined_requests_are_served_in_order_and_one_at_a_time() -> None:
    handler = ScriptedHandler()
    handler.respond = None
    door = Door(handler)
    door.feed(b"".join(post(b"%d" % number) for number in range(100)))
    for number in range(100):
        assert [served.body for served in door.served] == [b"%d" % one for one in range(number + 1)]
        door.served[number].reply.answer(200, [], b"")
        await door.settled()
    assert len(door.responses()) == 100


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 3000])
@pytest.mark.parametrize("kind", ["length", "chunked", "line ends"])
async def test_a_body_in_very_many_pieces_is_that_body(count: int, kind: str) -> None:
    body = b"\r\n\r\n" * count if kind == "line ends" else bytes(index % 251 for index in range(2 * count))
    wire = post(body) if kind == "length" else post(chunked(body), framing=CHUNKED)
    start = wire.index(b"\r\n\r\n") + 4
    for cuts in (range(start, len(wire), 2), [start]):
        door = Door()
        door.feed_cut(wire + post(b"next"), [*cuts, len(wire)])
        await door.settled()
        assert [served.body for served in door.served] == [body, b"next"]
