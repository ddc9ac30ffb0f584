"""Disconnects, in each state of a connection, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from tests.unit.doorway import CHUNKED, Door, chunked, get, post, served_once, silent_door
from tests.unit.fakes import HIGH_WATER, FakeTransport, settle

# -- disconnects -------------------------------------------------------------------------------


def _fresh() -> Door:
    return silent_door()


def _in_head() -> Door:
    door = silent_door()
    door.feed(post(b"hello")[:20])
    return door


def _in_body() -> Door:
    door = silent_door()
    door.feed(post(b"hello")[:-1])
    return door


def _in_chunks() -> Door:
    door = silent_door()
    door.feed(post(chunked(b"hello"), framing=CHUNKED)[:-4])
    return door


def _serving() -> Door:
    door = silent_door()
    door.feed(post(b"hello"))
    return door


def _serving_with_more_behind() -> Door:
    door = silent_door()
    door.feed(post(b"hello") + post(b"two") + b"P")
    return door


def _streaming() -> Door:
    door = silent_door()
    door.feed(get() + post(b"two"))
    door.served[0].reply.start(200, [], None)
    door.served[0].reply.write(b"x")
    return door


def _paused() -> Door:
    door = silent_door()
    door.feed(get())
    door.served[0].reply.start(200, [], None)
    door.transport.is_stalled = True
    door.served[0].reply.write(b"x" * (HIGH_WATER + 1))
    return door


def _idle() -> Door:
    return served_once(silent_door())


def _lingering() -> Door:
    door = silent_door()
    door.feed(b"garbage\r\n\r\n")
    return door


def _aborted() -> Door:
    door = silent_door()
    door.feed(post(b"hello"))
    door.served[0].reply.abort()
    return door


STATES = [
    _fresh, _in_head, _in_body, _in_chunks, _serving, _serving_with_more_behind, _streaming, _paused, _idle,
    _lingering, _aborted,
]  # fmt: skip
BUSY = (_serving, _serving_with_more_behind, _streaming, _paused)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", ["reset", "fin"])
async def test_a_disconnect_is_told_once_to_whom_it_concerns(state: Callable[[], Door], how: str) -> None:
    door = state()
    served = len(door.served)
    if how == "reset":
        door.transport.peer_resets()
    else:
        door.transport.peer_finishes()
        door.transport.peer_reads()
    await settle()
    assert len(door.served) == served, "nothing starts for a client that is gone"
    for one in door.served:
        assert one.conversation.events.count("disconnect") == (1 if state in BUSY else 0)
    assert door.connections == set()
    assert door.process.connections == 0
    assert not _deadlines(door)


@pytest.mark.parametrize("state", STATES)
async def test_every_state_ends_when_its_deadlines_pass_or_its_exchange_does(
    state: Callable[[], Door],
) -> None:
    door = state()
    for served in door.served[-1:]:
        if state in BUSY:
            served.reply.abort()
    for _ in range(4):
        door.expire()
        await settle()
    assert len(door.transport.lost) == 1
    assert door.process.connections == 0


@pytest.mark.parametrize("state", STATES)
async def test_nothing_keeps_a_connection_that_is_gone(state: Callable[[], Door]) -> None:
    """Not even a reference cycle: a body of megabytes must not wait for the garbage collector."""
    door = state()
    protocol = weakref.ref(door.protocol)
    door.transport.peer_resets()
    await settle()
    with _no_collector():
        door.served.clear()
        del door.protocol
        del door.transport
        await settle()
        assert protocol() is None


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _deadlines(door: Door) -> int:
    process = door.process
    return sum(map(len, (process.head_due, process.body_due, process.keepalive_due, process.linger_due)))


async def test_an_exchange_that_is_over_is_not_kept_by_its_idle_connection() -> None:
    door = silent_door()
    door.feed(post(b"x" * 1000))
    conversation = weakref.ref(door.served[0].conversation)
    door.served[0].reply.answer(200, [], b"")
    with _no_collector():
        door.served.clear()
        assert conversation() is None


async def test_the_repr_says_peer_and_state() -> None:
    door = silent_door()
    assert repr(door.protocol) == "<Http11Protocol 192.0.2.7 head>"
    door.feed(post(b"a"))
    assert repr(door.protocol) == "<Http11Protocol 192.0.2.7 serving>"


async def test_a_unix_socket_has_no_peer_and_tls_is_https() -> None:
    door = Door(transport=FakeTransport(peername="", tls=True))
    door.feed(post(b"a"))
    request = door.served[0].request
    assert (request.peer, request.scheme) == ("", "https")


async def test_the_loop_runs_dry() -> None:
    """No timer and no task per connection."""
    before = asyncio.all_tasks()
    door = served_once(silent_door())
    door.feed(post(b"a"))
    assert asyncio.all_tasks() == before
