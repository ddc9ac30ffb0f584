"""The owner of tasks: what it runs, what it reports, how it ends them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mcp_proxy.tasks import Tasks

WAIT_S = 5.0


class Endless:
    """Something that runs until it is cancelled, and then unwinds in more than one step."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.has_unwound = False

    async def run(self) -> None:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            later = asyncio.Event()
            asyncio.get_running_loop().call_soon(later.set)
            await later.wait()
            self.has_unwound = True


async def begun(tasks: Tasks) -> tuple[Endless, asyncio.Task[None]]:
    endless = Endless()
    task = tasks.spawn(endless.run())
    async with asyncio.timeout(WAIT_S):
        await endless.begun.wait()
    return endless, task


async def test_a_task_runs_and_is_forgotten() -> None:
    tasks = Tasks()
    ran = asyncio.Event()

    async def work() -> None:
        ran.set()

    task = tasks.spawn(work())
    assert len(tasks) == 1
    async with asyncio.timeout(WAIT_S):
        await task

    assert ran.is_set()
    assert len(tasks) == 0


async def test_a_failure_is_logged_with_its_traceback_and_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = Tasks()
    _, other = await begun(tasks)

    async def work() -> None:
        raise ZeroDivisionError("an accident")

    failing = tasks.spawn(work())
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait([failing])

    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
    assert not other.done()
    assert len(tasks) == 1
    await tasks.aclose()


async def test_a_cancelled_task_is_not_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    _, task = await begun(tasks)

    task.cancel()
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait([task])

    assert task.cancelled()
    assert caplog.records == []
    assert len(tasks) == 0


async def test_closing_cancels_every_task_and_waits_until_it_has_unwound() -> None:
    tasks = Tasks()
    running = [await begun(tasks) for _ in range(3)]

    async with asyncio.timeout(WAIT_S):
        await tasks.aclose()

    assert all(endless.has_unwound for endless, _ in running)
    assert all(task.cancelled() for _, task in running)
    assert len(tasks) == 0


async def test_closing_cancels_a_task_that_has_not_begun() -> None:
    tasks = Tasks()
    endless = Endless()
    task = tasks.spawn(endless.run())

    async with asyncio.timeout(WAIT_S):
        await tasks.aclose()

    assert task.cancelled()
    assert not endless.begun.is_set()


async def test_closing_twice_or_with_nothing_to_close_does_nothing() -> None:
    async with asyncio.timeout(WAIT_S):
        await Tasks().aclose()
        tasks = Tasks()
        await begun(tasks)
        await tasks.aclose()
        await tasks.aclose()

    assert len(tasks) == 0


async def test_what_is_spawned_after_closing_never_begins() -> None:
    tasks = Tasks()
    await tasks.aclose()
    endless = Endless()

    task = tasks.spawn(endless.run())
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait([task])

    assert task.cancelled()
    assert not endless.begun.is_set()
    assert len(tasks) == 0


async def test_closing_waits_no_longer_than_it_may_and_says_what_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = Tasks(close_s=0.01)
    begins, ends = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begins.set()
        while not ends.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ends.wait()

    task = tasks.spawn(work())
    async with asyncio.timeout(WAIT_S):
        await begins.wait()
        await tasks.aclose()

    assert not task.done()
    assert [record.getMessage() for record in caplog.records] == ["1 tasks did not end within 0.01 s"]
    ends.set()
    async with asyncio.timeout(WAIT_S):
        await task


async def test_a_task_that_fails_while_it_unwinds_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    endless = Endless()

    async def work() -> None:
        try:
            await endless.run()
        finally:
            raise ZeroDivisionError

    tasks.spawn(work())
    async with asyncio.timeout(WAIT_S):
        await endless.begun.wait()
        await tasks.aclose()

    assert len(caplog.records) == 1
    assert len(tasks) == 0


async def test_a_task_spawned_while_closing_is_ended_as_well() -> None:
    tasks = Tasks()
    first, late = Endless(), Endless()
    spawned: list[asyncio.Task[None]] = []

    async def work() -> None:
        try:
            await first.run()
        finally:
            spawned.append(tasks.spawn(late.run()))

    tasks.spawn(work())
    async with asyncio.timeout(WAIT_S):
        await first.begun.wait()
        await tasks.aclose()

    left = len(tasks)
    for task in spawned:
        task.cancel()
    assert left == 0
