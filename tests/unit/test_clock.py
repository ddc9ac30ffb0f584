"""Deadlines in their order, and the ticker that looks at them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mcp_proxy.clock import TICK_S, Deadlines, Ticker, Turns, now, patience
from tests.tools import PATIENCE_S


def deadlines(delay_s: float | None = 10.0) -> tuple[Deadlines[str], list[str]]:
    expired: list[str] = []
    return Deadlines(delay_s, expired.append), expired


# --- Deadlines ------------------------------------------------------------------------------------


def test_items_expire_in_the_order_in_which_they_were_armed() -> None:
    due, expired = deadlines()
    for at_s, item in enumerate("bca"):
        due.arm(item, float(at_s))

    due.sweep(11.0)

    assert expired == ["b", "c"]
    assert len(due) == 1


@pytest.mark.parametrize(("at_s", "expected"), [(9.99, []), (10.0, ["a"]), (1e9, ["a"])])
def test_an_item_expires_at_its_time_and_not_before(at_s: float, expected: list[str]) -> None:
    due, expired = deadlines()
    due.arm("a", 0.0)

    due.sweep(at_s)

    assert expired == expected


def test_an_item_expires_once() -> None:
    due, expired = deadlines()
    due.arm("a", 0.0)
    due.sweep(10.0)

    due.sweep(20.0)

    assert expired == ["a"]
    assert len(due) == 0


def test_arming_again_starts_again_behind_the_others() -> None:
    due, expired = deadlines()
    due.arm("a", 0.0)
    due.arm("b", 1.0)
    due.arm("a", 2.0)

    due.sweep(11.5)
    assert expired == ["b"]

    due.sweep(12.0)
    assert expired == ["b", "a"]


def test_a_disarmed_item_does_not_expire_and_may_be_disarmed_again() -> None:
    due, expired = deadlines()
    due.arm("a", 0.0)

    due.disarm("a")
    due.disarm("a")
    due.sweep(100.0)

    assert expired == []


def test_without_a_delay_nothing_is_kept() -> None:
    due, expired = deadlines(None)

    due.arm("a")
    due.arm("a", 0.0)
    due.disarm("a")
    due.sweep(1e9)

    assert len(due) == 0
    assert expired == []


def test_the_present_is_now_unless_it_is_told() -> None:
    due, expired = deadlines(1000.0)
    before_s = now()
    due.arm("a")

    due.sweep(before_s + 999.0)
    assert expired == []

    due.sweep(now() + 1000.0)
    assert expired == ["a"]


def test_the_newest_item_can_be_taken() -> None:
    due, expired = deadlines()
    due.arm("a", 0.0)
    due.arm("b", 1.0)
    due.arm("a", 2.0)

    assert [due.take_newest(), due.take_newest(), due.take_newest()] == ["a", "b", None]
    due.sweep(100.0)
    assert expired == []


@pytest.mark.parametrize(("size", "expected"), [(5, []), (3, []), (1, ["a", "b"]), (0, ["a", "b", "c"])])
def test_trimming_expires_the_oldest_before_their_time(size: int, expected: list[str]) -> None:
    due, expired = deadlines()
    for item in "abc":
        due.arm(item, 0.0)

    due.trim(size)

    assert expired == expected
    assert len(due) == 3 - len(expected)


def test_an_item_that_the_callback_arms_in_the_past_waits_for_the_next_sweep() -> None:
    expired: list[str] = []

    def expire(item: str) -> None:
        expired.append(item)
        due.arm(item, 0.0)

    due: Deadlines[str] = Deadlines(1.0, expire)
    due.arm("a", 0.0)

    due.sweep(100.0)
    due.sweep(100.0)

    assert expired == ["a", "a"]


def test_a_callback_may_disarm_everything() -> None:
    expired: list[str] = []

    def expire(item: str) -> None:
        expired.append(item)
        due.disarm("b")

    due: Deadlines[str] = Deadlines(1.0, expire)
    due.arm("a", 0.0)
    due.arm("b", 0.0)

    due.sweep(1.0)

    assert expired == ["a"]


def test_an_item_that_the_callback_disarms_does_not_expire() -> None:
    expired: list[str] = []

    def expire(item: str) -> None:
        expired.append(item)
        due.disarm("b")
        due.disarm(item)

    due: Deadlines[str] = Deadlines(1.0, expire)
    for item in "abc":
        due.arm(item, 0.0)

    due.sweep(1.0)

    assert expired == ["a", "c"]


def test_an_item_that_the_callback_arms_waits_for_its_turn() -> None:
    expired: list[str] = []

    def expire(item: str) -> None:
        expired.append(item)
        if len(expired) == 1:
            due.arm(item, 1.0)
            due.arm("new", 1.0)

    due: Deadlines[str] = Deadlines(1.0, expire)
    due.arm("a", 0.0)

    due.sweep(1.0)
    assert expired == ["a"]

    due.sweep(2.0)
    assert expired == ["a", "a", "new"]


_ITEMS = st.sampled_from("abcdefgh")


class DeadlinesAgainstModel(RuleBasedStateMachine):
    """The model looks at everything; the queue only at its front."""

    def __init__(self) -> None:
        super().__init__()
        self.due: Deadlines[str] = Deadlines(5.0, self.expire)
        self.model: dict[str, tuple[float, int]] = {}
        self.armed = 0
        self.at_s = 0.0
        self.on_expire: dict[str, tuple[str, str]] = {}

    def expire(self, item: str) -> None:
        first = min(self.model, key=self.model.__getitem__)
        assert item == first
        assert self.model.pop(item)[0] <= self.at_s
        action, other = self.on_expire.pop(item, ("", ""))
        if action == "arm":
            self.arm(other)
        elif action == "disarm":
            self.disarm(other)

    @rule(item=_ITEMS)
    def arm(self, item: str) -> None:
        self.armed += 1
        self.model[item] = (self.at_s + 5.0, self.armed)
        self.due.arm(item, self.at_s)

    @rule(item=_ITEMS)
    def disarm(self, item: str) -> None:
        self.model.pop(item, None)
        self.due.disarm(item)

    @rule()
    def take_newest(self) -> None:
        newest = max(self.model, key=lambda item: self.model[item][1], default=None)
        assert self.due.take_newest() == newest
        self.model.pop(newest or "", None)

    @rule(item=_ITEMS, action=st.sampled_from(["arm", "disarm"]), other=_ITEMS)
    def plan_for_expiry(self, item: str, action: str, other: str) -> None:
        self.on_expire[item] = (action, other)

    @rule(by_s=st.sampled_from([0.0, 1.0, 4.0, 5.0, 9.0]))
    def sweep(self, by_s: float) -> None:
        self.at_s += by_s
        self.due.sweep(self.at_s)
        assert all(due_s > self.at_s for due_s, _ in self.model.values())

    @invariant()
    def as_many(self) -> None:
        assert len(self.due) == len(self.model)


TestDeadlinesAgainstModel = DeadlinesAgainstModel.TestCase
TestDeadlinesAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# --- Ticker ---------------------------------------------------------------------------------------


async def ticks(count: int) -> None:
    """Wait until a ticker of its own has ticked so often."""
    ticker = Ticker()
    done = asyncio.Event()
    seen: list[float] = []

    def job(at_s: float) -> None:
        seen.append(at_s)
        if len(seen) == count:
            done.set()

    ticker.add(job)
    ticker.start()
    try:
        async with asyncio.timeout(50 * count * TICK_S):
            await done.wait()
    finally:
        ticker.stop()


async def test_every_job_is_called_at_each_tick_with_the_present() -> None:
    ticker = Ticker()
    calls: list[tuple[str, float]] = []
    ticker.add(lambda at_s: calls.append(("a", at_s)))
    ticker.add(lambda at_s: calls.append(("b", at_s)))
    started_s = now()

    ticker.start()
    await ticks(3)
    ticker.stop()

    assert [name for name, _ in calls] == ["a", "b"] * (len(calls) // 2)
    assert [at_s for _, at_s in calls] == sorted(at_s for _, at_s in calls)
    assert all(started_s < at_s <= now() for _, at_s in calls)
    assert calls[0][1] == calls[1][1]


async def test_starting_twice_is_starting_once() -> None:
    ticker = Ticker()
    calls: list[float] = []
    ticker.add(calls.append)

    ticker.start()
    ticker.start()
    ticker.stop()
    await ticks(2)

    assert calls == []


async def test_a_stopped_ticker_may_be_stopped_and_started_again() -> None:
    ticker = Ticker()
    calls: list[float] = []
    ticker.add(calls.append)
    ticker.stop()
    ticker.start()
    ticker.stop()
    ticker.stop()

    ticker.start()
    await ticks(2)
    ticker.stop()

    assert calls


async def test_a_job_may_stop_the_ticker() -> None:
    ticker = Ticker()
    calls: list[float] = []

    def job(at_s: float) -> None:
        calls.append(at_s)
        ticker.stop()

    ticker.add(job)
    ticker.start()
    await ticks(3)

    assert len(calls) == 1


async def test_every_tick_says_how_late_it_came() -> None:
    lags: list[float] = []
    ticker = Ticker(on_lag=lags.append)
    done = asyncio.Event()
    at_s: list[float] = []

    def job(tick_s: float) -> None:
        at_s.append(tick_s)
        if len(at_s) == 3:
            done.set()

    ticker.add(job)
    started_s = now()
    ticker.start()
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()
    ticker.stop()

    assert len(lags) >= 3
    assert all(lag_s >= 0.0 for lag_s in lags)
    # Nothing else has made the ticks come when they came.
    assert sum(lags) == pytest.approx(at_s[-1] - started_s - len(lags) * TICK_S, abs=0.01)


async def test_a_tick_that_comes_late_says_so_although_its_jobs_wait() -> None:
    lags: list[float] = []
    jobs: list[float] = []
    ticker = Ticker(on_lag=lags.append)
    ticker.add(jobs.append)
    ticker.start()
    time.sleep(5 * TICK_S)  # noqa: ASYNC251 - the pause
    async with asyncio.timeout(PATIENCE_S):
        while not jobs:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S / 10)
    ticker.stop()

    assert lags[0] >= 4 * TICK_S
    assert len(lags) == len(jobs) + 1


async def test_a_ticker_that_nobody_listens_to_may_get_a_listener_and_lose_it() -> None:
    lags: list[float] = []
    ticker = Ticker()
    ticker.start()
    ticker.on_lag = lags.append
    await ticks(2)
    assert lags
    ticker.on_lag = None
    heard = len(lags)
    await ticks(2)
    ticker.stop()

    assert len(lags) == heard


# --- Turns ----------------------------------------------------------------------------------------


async def test_whoever_asks_in_one_turn_of_the_loop_gets_the_same_and_in_the_next_another() -> None:
    turns = Turns()
    first = turns.turn or turns.begin()
    assert (turns.turn or turns.begin()) is first
    assert first.ended_s == 0.0

    await asyncio.sleep(0)
    await asyncio.sleep(0)

    second = turns.turn or turns.begin()
    assert second is not first
    assert first.began_s <= first.ended_s <= second.began_s


async def test_a_turn_ends_behind_what_was_written_in_it() -> None:
    turns = Turns()
    async with connected() as (reader, peer):
        _, writer = await asyncio.open_connection(sock=peer.dup())
        await asyncio.sleep(0)
        turn = turns.turn or turns.begin()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        assert 0 < turn.ended_s <= now()
        writer.close()
        await writer.wait_closed()


# --- a process that was paused --------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, socket.socket]]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    with theirs:
        yield reader, theirs
    writer.close()
    await writer.wait_closed()


async def test_patience_counts_what_came_while_we_were_paused() -> None:
    async with connected() as (reader, peer), patience(0.05):
        reading = asyncio.ensure_future(reader.readexactly(6))
        await asyncio.sleep(0)
        peer.send(b"answer")
        time.sleep(0.2)  # noqa: ASYNC251 - the pause
        assert await reading == b"answer"


async def test_patience_ends_after_a_pause_too() -> None:
    asyncio.get_running_loop().call_soon(time.sleep, 0.2)

    with pytest.raises(TimeoutError):
        async with patience(0.05):
            await asyncio.Event().wait()


async def test_patience_without_a_pause_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with patience(0.01):
            await asyncio.Event().wait()


async def test_deadlines_that_passed_during_a_pause_wait_for_what_was_not_read() -> None:
    order: list[str] = []
    ticker = Ticker()
    queue: Deadlines[str] = Deadlines(0.15, order.append)
    ticker.add(queue.sweep)
    ticker.start()

    async with connected() as (reader, peer), asyncio.timeout(PATIENCE_S):
        reading = asyncio.ensure_future(reader.readexactly(6))
        await asyncio.sleep(0)
        queue.arm("expired")
        peer.send(b"answer")
        time.sleep(0.5)  # noqa: ASYNC251 - the pause
        order.append((await reading).decode())
        while len(order) < 2:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)
    ticker.stop()

    assert order == ["answer", "expired"]


async def test_deadlines_are_kept_by_a_process_that_is_always_late() -> None:
    ticker = Ticker()
    calls: list[float] = []
    ticker.add(calls.append)
    ticker.start()
    async with asyncio.timeout(PATIENCE_S):
        while len(calls) < 2:
            time.sleep(2.5 * TICK_S)  # noqa: ASYNC251 - busy
            await asyncio.sleep(0)
    ticker.stop()


def test_a_shorter_delay_counts_for_what_is_armed_as_well() -> None:
    queue, expired = deadlines(3600.0)
    start_s = now()
    queue.arm("early", start_s)
    queue.follow(1.0)
    queue.arm("late", start_s)
    queue.sweep(start_s + 0.5)
    assert expired == []
    queue.sweep(now() + 1.0)
    assert expired == ["early", "late"]


def test_a_longer_delay_or_none_leaves_what_is_armed_as_it_was() -> None:
    queue, expired = deadlines(1.0)
    start_s = now()
    queue.arm("early", start_s)
    queue.follow(3600.0)
    queue.arm("late", start_s)
    queue.follow(None)
    queue.arm("never", start_s)
    queue.sweep(start_s + 1.0)
    assert expired == ["early"]
    queue.sweep(start_s + 3600.0)
    assert expired == ["early", "late"]
