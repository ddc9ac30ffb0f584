"""The contract of every session registry.

The tests use the fixture ``rig`` only. A registry joins them by a parameter of that fixture: a
store, and how to let its time pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest

from mcp_proxy import clock
from mcp_proxy.sessions import SessionKey, SessionRecord, SessionStore
from mcp_proxy.sessions.memory import MemoryStore

T = TypeVar("T")

TTL_S = 1000.0

KEY = SessionKey("main", b"s1")
OWNER = SessionRecord("http://a:80/mcp", "someone")
OTHER = SessionRecord("http://b:80/mcp")

Forgotten = list[tuple[SessionKey, SessionRecord]]


class Rig:
    """A store, what it forgot, and its time."""

    def __init__(
        self, store: SessionStore, forgotten: Forgotten, pass_time: Callable[[float], Awaitable[None] | None]
    ) -> None:
        self.store = store
        self.forgotten = forgotten
        self._pass_time = pass_time

    async def get(self, key: SessionKey = KEY) -> SessionRecord | None:
        return await settled(self.store.get(key))

    async def create(self, key: SessionKey = KEY, record: SessionRecord = OWNER) -> bool:
        return await settled(self.store.create(key, record))

    async def delete(self, key: SessionKey = KEY) -> None:
        await settled(self.store.delete(key))

    async def wait(self, seconds: float) -> None:
        """Let the store believe that so much time has passed, and do what it does then."""
        await settled(self._pass_time(seconds))


async def settled(value: T | Awaitable[T]) -> T:
    return await value if isinstance(value, Awaitable) else value


def memory() -> Rig:
    forgotten: Forgotten = []
    store = MemoryStore(TTL_S, lambda key, record: forgotten.append((key, record)))
    return Rig(store, forgotten, lambda seconds: store.sweep(clock.now() + seconds))


@pytest.fixture(params=[memory])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made: Rig = request.param()
    yield made
    await made.store.aclose()


# --- the contract ---------------------------------------------------------------------------------


async def test_what_was_never_created_is_unknown(rig: Rig) -> None:
    assert await rig.get() is None
    assert rig.store.count("main") == 0


async def test_what_was_created_is_found(rig: Rig) -> None:
    assert await rig.create() is True

    assert await rig.get() == OWNER
    assert await rig.get() == OWNER
    assert rig.store.count("main") == 1


async def test_an_existing_session_is_never_overwritten(rig: Rig) -> None:
    await rig.create()

    assert await rig.create(record=OTHER) is False
    assert await rig.create() is False

    assert await rig.get() == OWNER
    assert rig.store.count("main") == 1
    assert rig.forgotten == []


async def test_equal_ids_of_two_pools_are_two_sessions(rig: Rig) -> None:
    twin = SessionKey("other", KEY.session_id)
    await rig.create()
    assert await rig.create(twin, OTHER) is True

    await rig.delete()

    assert await rig.get() is None
    assert await rig.get(twin) == OTHER
    assert (rig.store.count("main"), rig.store.count("other")) == (0, 1)


@pytest.mark.parametrize("session_id", [b"!", b"~" * 512, b"{a}*:?[x]", b"%s\\n", b"main:s1"])
async def test_every_legal_id_is_a_key_of_its_own(rig: Rig, session_id: bytes) -> None:
    key = SessionKey("main", session_id)
    await rig.create()

    assert await rig.create(key, OTHER) is True

    assert await rig.get(key) == OTHER
    assert await rig.get() == OWNER


async def test_deleting_forgets_and_may_be_done_twice(rig: Rig) -> None:
    await rig.create()

    await rig.delete()
    await rig.delete()

    assert await rig.get() is None
    assert rig.store.count("main") == 0
    assert rig.forgotten == [(KEY, OWNER)]


async def test_a_deleted_session_may_be_created_again(rig: Rig) -> None:
    await rig.create()
    await rig.delete()

    assert await rig.create(record=OTHER) is True

    assert await rig.get() == OTHER
    assert rig.store.count("main") == 1


async def test_deleting_the_unknown_is_fine(rig: Rig) -> None:
    await rig.delete()

    assert rig.forgotten == []
    assert rig.store.count("main") == 0


async def test_a_session_lives_as_long_as_its_ttl(rig: Rig) -> None:
    await rig.create()

    await rig.wait(TTL_S - 1.0)
    assert rig.store.count("main") == 1

    await rig.wait(TTL_S + 1.0)
    assert await rig.get() is None
    assert rig.store.count("main") == 0
    assert rig.forgotten == [(KEY, OWNER)]


async def test_an_open_stream_keeps_its_session(rig: Rig) -> None:
    await rig.create()
    rig.store.hold(KEY)

    await rig.wait(10 * TTL_S)

    assert await rig.get() == OWNER
    assert rig.forgotten == []


async def test_the_ttl_starts_when_the_last_stream_ends(rig: Rig) -> None:
    await rig.create()
    rig.store.hold(KEY)
    rig.store.hold(KEY)
    rig.store.release(KEY)
    await rig.wait(10 * TTL_S)
    assert rig.store.count("main") == 1

    rig.store.release(KEY)
    await rig.wait(TTL_S - 1.0)
    assert rig.store.count("main") == 1

    await rig.wait(TTL_S + 1.0)
    assert rig.forgotten == [(KEY, OWNER)]


async def test_a_held_session_does_not_keep_others(rig: Rig) -> None:
    other = SessionKey("main", b"s2")
    await rig.create()
    await rig.create(other)
    rig.store.hold(KEY)

    await rig.wait(TTL_S + 1.0)

    assert [key for key, _ in rig.forgotten] == [other]


async def test_a_held_session_can_be_deleted(rig: Rig) -> None:
    await rig.create()
    rig.store.hold(KEY)

    await rig.delete()
    rig.store.release(KEY)

    assert await rig.get() is None
    assert rig.forgotten == [(KEY, OWNER)]


async def test_holding_and_releasing_the_unknown_is_fine(rig: Rig) -> None:
    rig.store.hold(KEY)
    rig.store.release(KEY)

    assert await rig.get() is None
    assert rig.store.count("main") == 0


async def test_the_end_of_an_old_stream_means_nothing_to_a_new_session(rig: Rig) -> None:

    await rig.create()
    rig.store.hold(KEY)
    await rig.delete()
    await rig.create(record=OTHER)
    rig.store.release(KEY)

    await rig.wait(TTL_S + 1.0)

    assert [record for _, record in rig.forgotten] == [OWNER, OTHER]
    assert rig.store.count("main") == 0


async def test_closing_is_not_forgetting_and_may_be_done_twice(rig: Rig) -> None:
    await rig.create()
    rig.store.hold(KEY)

    await rig.store.aclose()
    await rig.store.aclose()
    rig.store.release(KEY)

    assert rig.store.count("main") == 0
    assert rig.forgotten == []


def test_each_store_has_a_name_for_the_metrics() -> None:
    assert memory().store.name == "memory"
