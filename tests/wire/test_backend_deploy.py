"""A new version of a server is deployed, replica by replica, while clients come, call, stream and listen
through nginx and two proxies.

Rules of this file: every replica of the new version has another address than the one that it replaces, as
pods have. An old one is killed as soon as both proxies have let go of it, and not before. What clients saw
and what servers executed is judged whole at the end. Nobody waits for a time: the next replica is replaced
when every client has been served again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.tools import PATIENCE_S
from tests.tools.client import Answer, Client, get, post
from tests.tools.kube_api import Json, KubeApi, member, slice_of
from tests.tools.mcp_backend import INITIALIZE
from tests.wire.fronted import Front, front, message, owner, route_to
from tests.wire.server_processes import Server

GUESTS = 9
STAYING = 6
REPLICAS = 3
DRAIN_S = 0.5


class Guest:
    """One client: it calls all the time, and listens all the time. When it is told that its session is
    unknown it starts again, as the specification says. ``stays`` False: it never listens, and leaves after a
    few calls to come again with another session."""

    def __init__(self, site: Front, *, stays: bool) -> None:
        self._site = site
        self.stays = stays
        self.sessions: list[str] = []
        self.answered: list[int] = []
        """Ids of calls that succeeded."""
        self.refused: list[int] = []
        """Ids of calls that got the documented 404."""
        self.failures: list[str] = []
        self.ends: list[str] = []
        """How each of its GET streams ended."""
        self.streams = 0
        self.stops = False
        self._progress = asyncio.Event()
        self._client: Client | None = None

    @property
    def session(self) -> str:
        return self.sessions[-1]

    @property
    def _field(self) -> str:
        return f"Mcp-Session-Id: {self.session}"

    def _moved(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._progress.wait()

    def is_served(self, calls: int) -> bool:
        """It has made so many calls, and listens; or it never will again."""
        is_listening = self.streams > len(self.ends) or not self.stays
        return (len(self.answered) >= calls and is_listening) or bool(self.failures)

    async def _ask(self, request: bytes, method: str = "POST") -> Answer:
        """On a connection that is kept for as long as nginx likes."""
        self._client = self._client or await Client.connect(self._site.port)
        answer = await self._client.ask(request, method)
        if answer.says_close:
            self.close()
        return answer

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _begin(self) -> None:
        answer = await self._ask(post(INITIALIZE))
        if answer.status == 200:
            self.sessions.append((answer.head.one("mcp-session-id") or b"").decode())
        else:
            self.failures.append(f"initialize: {answer}")
            self.stops = True
        self._moved()

    async def call_on(self) -> None:
        await self._begin()
        while not self.stops:
            number = next(self._site.numbers)
            name = "count" if number % 4 == 0 else "echo"
            answer = await self._ask(post(message(number, name), self._field))
            if _is_whole(answer, number):
                self.answered.append(number)
            elif (answer.status, answer.reason) == (404, "session_not_found"):
                self.refused.append(number)
                await self._begin()
            else:
                self.failures.append(f"call {number}: {answer}")
            self._moved()
            if not self.stays and len(self.answered) % 3 == 0:
                await self._leave()
                await self._begin()

    async def _leave(self) -> None:
        answer = await self._ask(get(self._field, method="DELETE"), "DELETE")
        if answer.status not in (200, 204, 404):
            self.failures.append(f"DELETE: {answer}")

    async def listen_on(self) -> None:
        await self.until(lambda: bool(self.sessions))
        while not self.stops:
            async with await Client.connect(self._site.port) as client:
                session = self.session
                await client.send(get(self._field))
                head = await client.head("GET")
                if head.status == 404:
                    await self.until(lambda session=session: self.session != session)  # type: ignore[misc]
                    continue
                if head.status != 200:
                    self.failures.append(f"GET: {head.raw!r}")
                    self._moved()
                    return
                await client.body_until(b"\n\n")
                self.streams += 1
                self._moved()
                rest = await client.rest()
                self.ends.append(rest.framing if rest.body.endswith(b"\n\n") else "torn")


def _is_whole(answer: Answer, number: int) -> bool:
    return answer.status == 200 and answer.framing == "clean" and b'"id": %d,' % number in answer.body


@contextlib.asynccontextmanager
async def visited(site: Front) -> AsyncIterator[list[Guest]]:
    guests = [Guest(site, stays=at < STAYING) for at in range(GUESTS)]
    calling = [asyncio.create_task(guest.call_on()) for guest in guests]
    listening = [asyncio.create_task(guest.listen_on()) for guest in guests if guest.stays]
    try:
        yield guests
        for guest in guests:
            guest.stops = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*calling)
        assert [task.exception() for task in listening if task.done()] == []
    finally:
        for task in (*calling, *listening):
            task.cancel()
        await asyncio.gather(*calling, *listening, return_exceptions=True)
        for guest in guests:
            guest.close()


async def served_again(guests: list[Guest]) -> None:
    """Every client has made ten more calls, and listens."""
    goals = [(guest, len(guest.answered) + 10) for guest in guests]
    async with asyncio.timeout(PATIENCE_S):
        for guest, goal in goals:
            await guest.until(lambda guest=guest, goal=goal: guest.is_served(goal))  # type: ignore[misc]
    assert [failure for guest in guests for failure in guest.failures] == []


Replace = Callable[[Server, Server], Awaitable[None]]
"""Put the second in the place of the first; returns when nobody needs that any more."""


async def deploy(site: Front, folder: Path, old: list[Server], replace: Replace) -> list[Guest]:
    """Every one of ``old`` is replaced under load; the clients, and proof that all calls ran exactly once."""
    async with contextlib.AsyncExitStack() as stack:
        new = [stack.enter_context(Server(f"new-{at}", folder)) for at in range(REPLICAS)]
        async with visited(site) as guests:
            await served_again(guests)
            owners = {owner(guest.session) for guest in guests if guest.stays}
            assert owners == {server.name for server in old}
            for one, other in zip(old, new, strict=True):
                await replace(one, other)
                one.kill()
                await served_again(guests)
        assert [failure for guest in guests for failure in guest.failures] == []
        executed = Counter(number for server in (*old, *new) for number in server.received())
        assert {executed[number] for guest in guests for number in guest.answered} == {1}
        assert {executed[number] for guest in guests for number in guest.refused} <= {0}
        ends = [end for guest in guests for end in guest.ends]
        assert len(ends) >= STAYING
        assert set(ends) == {"clean"}
        assert sum(len(server.made) for server in new) >= GUESTS
    return guests


def judge(guests: list[Guest], on_backend_loss: str) -> None:
    if on_backend_loss == "reinitialize":
        assert [number for guest in guests for number in guest.refused] == []
    for guest in guests[:STAYING]:
        if on_backend_loss == "reinitialize":
            assert len(guest.sessions) == 1, "it has not noticed anything"
        else:
            assert len(guest.refused) == len(guest.sessions) - 1, "one 404 per session that ended"
            assert len(guest.sessions) > 1
            assert owner(guest.session).startswith("new-")


@contextlib.asynccontextmanager
async def old_version(folder: Path) -> AsyncIterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(f"old-{at}", folder)) for at in range(REPLICAS)]


@pytest.mark.parametrize("on_backend_loss", ["reinitialize", "end"])
async def test_a_new_version_that_an_operator_deploys_costs_no_call(
    on_backend_loss: str, tmp_path: Path
) -> None:
    """Taken in by a reload, the old one drained by hand, and taken out by another reload when it is empty."""
    async with front(tmp_path) as site, old_version(tmp_path) as old:
        serving = list(old)
        await site.use(serving, on_backend_loss=on_backend_loss)

        async def replace(one: Server, other: Server) -> None:
            await site.use([*serving, other], goes_on=True, on_backend_loss=on_backend_loss)
            await site.drain(one, DRAIN_S)
            for at in range(len(site.sites)):
                await site.until(lambda at=at: is_empty(site, one, at), "it is empty", at)  # type: ignore[misc]
            serving[serving.index(one)] = other
            await site.use(serving, goes_on=True, on_backend_loss=on_backend_loss)
            await site.becomes(one, "gone")

        judge(await deploy(site, tmp_path, old, replace), on_backend_loss)


async def is_empty(site: Front, server: Server, at: int) -> bool:
    known = (await site.status(at))[server.url]
    left: tuple[float, ...] = (known["drain"]["left_s"], known["inflight"], known["streams"])
    return not any(left)


TERMINATING = {"ready": False, "serving": True, "terminating": True}


@pytest.mark.parametrize("on_backend_loss", ["reinitialize", "end"])
async def test_a_new_version_that_kubernetes_rolls_out_costs_no_call(
    on_backend_loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod comes, an old one is said to terminate, and is killed when the proxies have let go of it."""
    async with KubeApi() as api, old_version(tmp_path) as old:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        for server in old:
            await api.put(pod(server))
        async with front(tmp_path) as site:
            await found(site, on_backend_loss)

            async def replace(one: Server, other: Server) -> None:
                await api.put(pod(other))
                await site.becomes(other, "up")
                await api.put(pod(one, **TERMINATING))
                await site.becomes(one, "draining", "gone")
                for at in range(len(site.sites)):
                    await site.until(lambda at=at: is_empty(site, one, at), "it is empty", at)  # type: ignore[misc]
                await api.delete(one.name)
                await site.becomes(one, "gone")

            judge(await deploy(site, tmp_path, old, replace), on_backend_loss)


def pod(server: Server, **conditions: bool) -> Json:
    """All are at one address, so each has a port and a slice of its own."""
    return slice_of(server.name, member("127.0.0.1", server.name, **conditions), ports=[("mcp", server.port)])


async def found(site: Front, on_backend_loss: str) -> None:
    """From now on the pool is what Kubernetes says."""
    pool = {
        "discover": {"kubernetes": {"service": "weather"}, "port": "mcp"},
        "on_backend_loss": on_backend_loss,
        "drain": f"{DRAIN_S * 1000:g}ms",
    }
    config = site.config([])
    (name,) = config["pools"]
    await site.reload({**config, **route_to(name, pool)})
    for at in range(len(site.sites)):

        async def are_found(at: int = at) -> bool:
            return len(await site.status(at)) == REPLICAS

        await site.until(are_found, "the pods are found", at)
