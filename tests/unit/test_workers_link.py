"""Parent and worker over a real pair of sockets, both in this loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mcp_proxy.errors import StartupError, StoreError
from mcp_proxy.sessions import Listed, Page, SessionRecord
from mcp_proxy.tasks import Tasks
from mcp_proxy.workers import calls
from mcp_proxy.workers.link import Call, WorkerError, WorkerGone, WorkerLink, answer_calls
from tests.tools import PATIENCE_S

LISTED = Listed("a" * 40, "/mcp", SessionRecord("http://a:1/mcp", upstream_id=b"\x21~"), 1.5)


class Pair:
    """``handlers`` is what the worker answers; ``answering`` ends with its side of the link."""

    def __init__(self) -> None:
        self.handlers: dict[str, tuple[Call[Any], Any]] = {}
        self.tasks = Tasks()
        self.worker_tasks = Tasks()

    async def open(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.link = await WorkerLink.over(ours, self.tasks)
        self.answering = self.worker_tasks.spawn(answer_calls(self.theirs, self.handlers, self.worker_tasks))

    def on(self, call: Call[Any], handler: Any) -> None:
        self.handlers[call.name] = (call, handler)

    async def ask(self, call: Call[Any], *arguments: object) -> Any:
        return await self.link.ask(call, *arguments, wait_s=PATIENCE_S)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    await pair.open()
    yield pair
    pair.link.close()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([pair.answering])
    await pair.worker_tasks.aclose()
    await pair.tasks.aclose()


async def test_arguments_and_results_keep_their_types(pair: Pair) -> None:
    seen: list[object] = []

    def page(cursor: str, limit: int) -> Page:
        seen.append((cursor, limit))
        return Page([LISTED], "next")

    async def restore(sessions: list[Listed]) -> int:
        seen.append(sessions)
        return len(sessions)

    pair.on(calls.SESSIONS_PAGE, page)
    pair.on(calls.RESTORE_SESSIONS, restore)
    pair.on(calls.SESSION, lambda name: LISTED if name else None)
    assert await pair.ask(calls.SESSIONS_PAGE, "here", 5) == Page([LISTED], "next")
    assert await pair.ask(calls.RESTORE_SESSIONS, [LISTED, LISTED]) == 2
    assert await pair.ask(calls.SESSION, "x") == LISTED
    assert await pair.ask(calls.SESSION, "") is None
    assert seen == [("here", 5), [LISTED, LISTED]]


async def test_answers_come_in_any_order(pair: Pair) -> None:
    late: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    slow, quick = Call[int]("slow", int), Call[int]("quick", int)
    pair.on(slow, lambda: late)
    pair.on(quick, lambda: 2)
    waiting = asyncio.create_task(pair.ask(slow))
    assert await pair.ask(quick) == 2
    late.set_result(1)
    assert await waiting == 1


@pytest.mark.parametrize("error", [ValueError("v"), StoreError("s"), StartupError("no certificate")])
async def test_errors_of_the_contract_arrive_as_they_are(pair: Pair, error: Exception) -> None:
    def fail() -> None:
        raise error

    call = Call[None]("fail", None)
    pair.on(call, fail)
    with pytest.raises(type(error), match=f"^{error}$"):
        await pair.ask(call)


async def test_any_other_error_stays_in_the_log_of_the_worker(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise RuntimeError("secret detail")

    call = Call[None]("fail", None)
    pair.on(call, fail)
    with caplog.at_level(logging.ERROR), pytest.raises(WorkerError) as caught:
        await pair.ask(call)
    assert "secret" not in str(caught.value)
    assert "secret detail" in caplog.text


async def test_an_answer_that_comes_too_late_is_nobodys(pair: Pair) -> None:
    late: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    slow, quick = Call[int]("slow", int), Call[int]("quick", int)
    pair.on(slow, lambda: late)
    pair.on(quick, lambda: 2)
    with pytest.raises(TimeoutError):
        await pair.link.ask(slow, wait_s=0)
    late.set_result(1)
    assert await pair.ask(quick) == 2


async def test_whoever_waits_learns_that_the_worker_is_gone(pair: Pair) -> None:
    call = Call[int]("never", int)
    pair.on(call, lambda: asyncio.get_running_loop().create_future())
    waiting = asyncio.create_task(pair.ask(call))
    pair.theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(WorkerGone):
        await waiting
    with pytest.raises(WorkerGone):
        await pair.ask(call)


async def test_the_worker_learns_that_its_parent_is_gone(pair: Pair) -> None:
    pair.link.close()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([pair.answering])
    assert pair.answering.done()
