"""``mcp-proxy backends``: the table, the document, and what does not fit."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator

import pytest

from mcp_proxy.admin import DrainStatus
from mcp_proxy.admin.app import create_admin
from mcp_proxy.cli.backend_client import Backend, Drain
from mcp_proxy.cli.backend_table import span, table
from mcp_proxy.cli.text import shortened
from tests.tools import PATIENCE_S
from tests.unit.operated import ONE, SIX, TWO, Operated
from tests.unit.operating import run, start
from tests.unit.running import serving


@pytest.fixture
def view() -> Operated:
    return Operated()


@pytest.fixture
async def address(view: Operated) -> AsyncIterator[str]:
    async with serving(create_admin(view, None)) as address:
        yield address


async def test_a_list_has_one_aligned_line_per_backend_and_pool(view: Operated, address: str) -> None:
    view.set("weather", TWO, state="draining", drain=DrainStatus("discovery", 251.6, 9))

    title, *lines = (await run(address, "backends")).stdout.splitlines()

    assert title.split() == [
        "POOL",
        "BACKEND",
        "STATE",
        "WEIGHT",
        "SESSIONS",
        "STREAMS",
        "IN",
        "FLIGHT",
        "ERA",
        "DRAIN",
    ]
    assert lines[0].split() == ["weather", ONE, "up", "2", "3", "2", "1", "legacy", "-"]
    assert lines[1].split(maxsplit=8)[2:] == ["draining", "1", "0", "0", "0", "-", "4m12s left, by discovery"]
    assert [line.split()[:2] for line in lines[2:]] == [["other", ONE], ["other", SIX]]
    assert len({line.index("http") for line in lines}) == 1


async def test_a_list_can_be_of_one_pool(address: str) -> None:
    result = await run(address, "backends", "--pool", "other", "--json")

    assert [each["id"] for each in json.loads(result.stdout)["backends"]] == [ONE, SIX]


async def test_the_document_has_what_the_listener_says(address: str) -> None:
    result = await run(address, "backends", "--json")

    first = json.loads(result.stdout)["backends"][0]
    assert (first["id"], first["pool"], first["state"], first["drain"]) == (ONE, "weather", "up", None)


async def test_a_pool_that_is_not_there_is_1_and_the_others_are_named(address: str) -> None:
    result = await run(address, "backends", "--pool", "wether")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "'wether'" in result.stderr
    assert "weather, other" in result.stderr


async def test_no_backends_is_no_failure(view: Operated, address: str) -> None:
    view.pools = {"weather": {}}

    result = await run(address, "backends")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no backends\n")
    assert json.loads((await run(address, "backends", "--json")).stdout) == {"backends": []}


async def test_a_document_has_an_end(address: str) -> None:
    result = await run(address, "backends", "--json", "--watch")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "--watch" in result.stderr


async def test_nobody_there_is_1_with_cause_and_cure() -> None:
    result = await run("127.0.0.1:1", "backends")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "is the proxy running" in result.stderr


async def test_a_name_that_a_terminal_would_obey_is_made_plain(view: Operated, address: str) -> None:
    view.pools["evil\x1b[31m"] = view.pools.pop("other")

    assert "\x1b" not in (await run(address, "backends")).output


async def test_a_watch_goes_on_until_it_is_interrupted_and_that_is_no_failure(
    view: Operated, address: str
) -> None:
    process = await start(address, "backends", "--watch", "--pool", "weather")
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        first = [await process.stdout.readline() for _ in range(3)]
        view.set("weather", TWO, state="up")
        second = [await process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert [b" down " in first[2], b" up " in second[2]] == [True, True]
    assert (process.returncode, err.strip()) == (0, b"")


# --- the table --------------------------------------------------------------------------------------

LONG = "http://weather-0.weather-headless.mcp.svc.cluster.local:8000/mcp"


def backends(*ids: str, drain: Drain | None = None) -> list[Backend]:
    return [Backend(id, True, 1, 2, 3, "weather", 4, "up", "modern", drain, 0) for id in ids]


@pytest.mark.parametrize("width", [60, 70, 80, 100, 120, 200])
def test_a_table_fits_the_terminal(width: int) -> None:
    lines = table(backends(ONE, LONG), width)

    assert max(map(len, lines)) <= width
    assert len(lines) == 3
    assert lines[0].split()[:3] == ["POOL", "BACKEND", "STATE"]


def test_what_fits_is_not_shortened() -> None:
    assert table(backends(ONE, LONG), 200) == table(backends(ONE, LONG))
    assert ONE in table(backends(ONE), 90)[1]


def test_the_middle_of_a_name_goes_first_then_what_is_missed_least() -> None:
    assert "…" in table(backends(LONG), 110)[1]
    assert "WEIGHT" in table(backends(LONG), 110)[0]
    narrow = table(backends(LONG), 70)[0]
    assert "WEIGHT" not in narrow
    assert "SESSIONS" in narrow
    assert "DRAIN" in narrow


@pytest.mark.parametrize(
    ("text", "size", "short"), [("abcdef", 6, "abcdef"), ("abcdef", 5, "ab…ef"), ("abcdef", 4, "ab…f")]
)
def test_a_text_is_shortened_in_the_middle(text: str, size: int, short: str) -> None:
    assert shortened(text, size) == short
    assert len(short) == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (251.6, "4m12s"), (3600, "1h00m"), (90000, "25h00m")],
)
def test_a_span_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_drain_whose_time_is_over_says_so() -> None:
    assert table(backends(ONE, drain=Drain("operator", 0.0, 3)))[1].endswith("time is over, by operator")
