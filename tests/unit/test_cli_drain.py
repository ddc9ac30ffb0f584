"""``mcp-proxy drain``: which backend is meant, at which replicas, and until when it waits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator

import pytest

from mcp_proxy.admin import BackendStatus, DrainStatus, Status
from mcp_proxy.admin.app import create_admin
from tests.tools import PATIENCE_S
from tests.unit.operated import ONE, SIX, TWO, Operated, backend
from tests.unit.operating import run, start
from tests.unit.running import serving


class Draining(Operated):
    """What is drained loses a session, then a stream, at every look."""

    def status(self) -> Status:
        status = super().status()
        for pool, members in self.pools.items():
            for id, each in members.items():
                if each.drain is not None:
                    self.set(
                        pool,
                        id,
                        sessions=max(0, each.sessions - 1),
                        streams=max(0, each.streams - 1),
                        inflight=0,
                    )
        return status


@pytest.fixture
def view() -> Operated:
    return Operated()


@pytest.fixture
async def address(view: Operated) -> AsyncIterator[str]:
    async with serving(create_admin(view, None)) as address:
        yield address


# --- which one --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "id"),
    [(TWO, TWO), ("10.0.0.12:8000", TWO), ("0.12", TWO), ("[fd00::1]:443", SIX), ("a%20b", SIX)],
)
async def test_a_backend_is_named_by_id_address_or_a_part(
    view: Operated, address: str, text: str, id: str
) -> None:
    result = await run(address, "drain", text)

    assert result.exit_code == 0, result.output
    assert view.asked == [("drain", id, None, None)]
    assert result.stdout.startswith(f"{id} in ")
    assert "5m00s left" in result.stdout


async def test_a_whole_id_is_meant_even_if_it_is_a_part_of_another(view: Operated, address: str) -> None:
    view.pools["weather"][ONE + "2"] = backend(ONE + "2")

    assert (await run(address, "drain", ONE)).exit_code == 0
    assert view.asked == [("drain", ONE, None, None)]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["10.0.0"], [ONE, TWO, "several"]),
        (["nosuch"], [ONE, TWO, SIX, "nosuch"]),
        ([TWO, "--pool", "other"], [ONE, SIX]),
        ([TWO, "--pool", "wether"], ["weather, other"]),
    ],
)
async def test_an_unclear_name_drains_nothing_and_shows_what_there_is(
    view: Operated, address: str, args: list[str], words: list[str]
) -> None:
    result = await run(address, "drain", *args)

    assert (result.exit_code, result.stdout) == (1, "")
    assert all(word in result.stderr for word in words)
    assert view.asked == []


@pytest.mark.parametrize(
    "args",
    [
        [], [ONE, "--proxy"], ["--proxy", "--cancel"], ["--proxy", "--for", "5m"], ["--proxy", "--pool", "x"],
        [ONE, "--cancel", "--wait"], [ONE, "--cancel", "--for", "5m"], [ONE, "--for", "5"],
        [ONE, "--for", "none"], [ONE, "--for", ""], [ONE, "--admin", "off"], [ONE, TWO],
        [ONE, "--token", "hunter2"],
    ],
)  # fmt: skip
async def test_bad_usage_is_2_and_drains_nothing(view: Operated, address: str, args: list[str]) -> None:
    result = await run(address, "drain", *args)

    assert (result.exit_code, result.stdout) == (2, "")
    assert view.asked == []


# --- the order --------------------------------------------------------------------------------------


async def test_time_and_pool_are_passed_on(view: Operated, address: str) -> None:
    result = await run(address, "drain", ONE, "--for", "90s", "--pool", "other", "--json")

    assert view.asked == [("drain", ONE, "other", 90.0)]
    (replica,) = json.loads(result.stdout)["replicas"]
    assert (replica["admin"], replica["error"]) == (f"http://{address}", None)
    assert [(each["pool"], each["drain"]["left_s"]) for each in replica["backends"]] == [("other", 90.0)]


async def test_a_drain_is_taken_back(view: Operated, address: str) -> None:
    await run(address, "drain", ONE)

    result = await run(address, "drain", ONE, "--cancel")

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"{ONE} in weather stays", f"{ONE} in other stays"]
    assert view.pools["weather"][ONE].drain is None


# --- several replicas -------------------------------------------------------------------------------


async def test_every_replica_is_drained_and_named(view: Operated, address: str) -> None:
    second = Operated()
    async with serving(create_admin(second, None)) as other:
        result = await run(None, "drain", "0.12", "--admin", address, "--admin", f"http://{other}")

    assert result.exit_code == 0
    assert view.asked == second.asked == [("drain", TWO, None, None)]
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        f"http://{address}",
        f"http://{other}",
    ]


async def test_a_replica_that_is_away_does_not_keep_the_others_from_it(view: Operated, address: str) -> None:
    result = await run(None, "drain", TWO, "--admin", "127.0.0.1:1", "--admin", address, "--json")

    assert result.exit_code == 1
    assert view.asked == [("drain", TWO, None, None)]
    away, there = json.loads(result.stdout)["replicas"]
    assert "cannot reach" in away["error"]
    assert (there["error"], there["backends"][0]["state"]) == (None, "draining")
    assert "cannot reach http://127.0.0.1:1" in result.stderr


async def test_a_name_that_means_another_backend_elsewhere_drains_nothing(
    view: Operated, address: str
) -> None:
    second = Operated()
    second.pools = {"weather": {"http://10.0.0.9:8000/mcp2": backend("http://10.0.0.9:8000/mcp2")}}
    view.pools = {"weather": {TWO + "2": backend(TWO + "2")}}
    async with serving(create_admin(second, None)) as other:
        result = await run(None, "drain", "mcp2", "--admin", address, "--admin", other)

    assert result.exit_code == 1
    assert view.asked == second.asked == []
    assert TWO + "2" in result.stderr


# --- waiting ----------------------------------------------------------------------------------------


async def test_it_waits_until_nothing_is_left_and_shows_the_way() -> None:
    view = Draining()
    view.set("weather", TWO, sessions=2, streams=1, inflight=1)
    async with serving(create_admin(view, None)) as address:
        result = await run(address, "drain", TWO, "--wait")

    assert result.exit_code == 0
    assert result.stdout == f"{TWO} is drained\n"
    steps = [line.partition(";")[0] for line in result.stderr.splitlines()]
    assert steps == ["sessions 2, streams 1, in flight 1", "sessions 1, streams 0, in flight 0"]


async def test_the_end_of_the_time_ends_the_wait_and_what_was_left_is_told(
    view: Operated, address: str
) -> None:
    view.set("weather", TWO, sessions=3)

    result = await run(address, "drain", TWO, "--wait", "--for", "0s")

    assert result.exit_code == 0
    assert "sessions left: 3" in result.stdout


async def test_a_backend_that_leaves_has_nothing_left() -> None:
    class Leaving(Operated):
        async def drain_backend(
            self, backend_id: str, pool: str | None, seconds: float | None
        ) -> list[BackendStatus]:
            found = await super().drain_backend(backend_id, pool, seconds)
            del self.pools["weather"][backend_id]
            return found

    async with serving(create_admin(Leaving(), None)) as address:
        result = await run(address, "drain", TWO, "--wait", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["replicas"][0]["backends"] == []


async def test_a_drain_that_somebody_takes_back_is_a_failure() -> None:
    class Restless(Operated):
        async def drain_backend(
            self, backend_id: str, pool: str | None, seconds: float | None
        ) -> list[BackendStatus]:
            found = await super().drain_backend(backend_id, pool, seconds)
            await self.undrain_backend(backend_id, pool)
            return found

    view = Restless()
    async with serving(create_admin(view, None)) as address:
        result = await run(address, "drain", TWO, "--wait")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "taken back" in result.stderr


async def test_to_stop_waiting_is_a_failure_because_something_is_left(view: Operated, address: str) -> None:
    view.set("weather", TWO, sessions=3)
    process = await start(address, "drain", TWO, "--pool", "weather", "--wait")
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        first = await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert first.startswith(b"sessions 3, ")
    assert (process.returncode, err.strip()) == (1, b"Error: not waited for, and the drain goes on.")


async def test_all_replicas_are_waited_for() -> None:
    views = [Draining(), Draining()]
    views[0].set("weather", TWO, sessions=1)
    views[1].set("weather", TWO, sessions=2)
    async with serving(create_admin(views[0], None)) as one, serving(create_admin(views[1], None)) as other:
        result = await run(None, "drain", TWO, "--wait", "--admin", one, "--admin", other)

    assert result.exit_code == 0
    assert result.stderr.startswith("sessions 3, ")
    assert len(result.stdout.splitlines()) == 2


async def test_a_terminal_gets_a_bar() -> None:
    view = Draining()
    view.set("weather", TWO, sessions=2)
    ours, theirs = os.openpty()
    async with serving(create_admin(view, None)) as address:
        process = await start(address, "drain", TWO, "--wait", stderr=theirs)
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await process.communicate()
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)

    assert (process.returncode, out) == (0, f"{TWO} is drained\n".encode())
    steps = [shown.index(text) for text in (b" 0%", b" 50%", b"100%")]
    assert steps == sorted(steps)


# --- the proxy --------------------------------------------------------------------------------------


async def test_the_proxy_is_drained(view: Operated, address: str) -> None:
    result = await run(address, "drain", "--proxy")

    assert (result.exit_code, result.stdout) == (0, "the proxy is draining\n")
    assert [each[0] for each in view.asked] == ["drain_proxy"]


async def test_the_end_of_the_proxy_is_waited_for() -> None:
    class Dying(Operated):
        seen = asyncio.Event()

        def status(self) -> Status:
            self.seen.set()
            return super().status()

    view = Dying()
    async with serving(create_admin(view, None)) as address:
        waiting = asyncio.ensure_future(run(address, "drain", "--proxy", "--wait"))
        async with asyncio.timeout(PATIENCE_S):
            await view.seen.wait()
    result = await waiting

    assert (result.exit_code, result.stdout) == (0, "the proxy has ended\n")
    assert "streams 2, in flight 1" in result.stderr


async def test_a_drain_of_discovery_is_shown_like_any_other(view: Operated, address: str) -> None:
    view.set("weather", TWO, drain=DrainStatus("discovery", 9.0, 0), state="draining")

    assert "by discovery" in (await run(address, "backends")).stdout
