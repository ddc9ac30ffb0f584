"""``mcp-proxy tap``: lines as exchanges end, filtered, for people and for machines."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from click.testing import Result

from mcp_proxy.admin.app import create_admin
from mcp_proxy.cli.event_client import EVENT_LIMIT
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.telemetry import RequestRecord
from mcp_proxy.telemetry.recent import SIZE, Recent
from tests.tools import PATIENCE_S
from tests.unit.operated import ONE, TWO, Operated, call
from tests.unit.operating import run, start
from tests.unit.running import serving

TRAFFIC = [
    call(name="well"),
    call(name="refused", status=503, reason="no_backend"),
    call(name="cut", ended_by=Fault.BACKEND, phase=Phase.BODY),
    call(name="left", ended_by=Fault.CLIENT, phase=Phase.BODY, is_stream=True),
    call(name="elsewhere", pool="other", method="tools/list"),
    call(name="", method="", http_method="GET", pool="", backend="", session="", status=0),
]


class Busy(Operated):
    """Its traffic passes once somebody listens; then it drains."""

    def __init__(self, traffic: Iterable[RequestRecord]) -> None:
        super().__init__()
        self._traffic = list(traffic)

    async def recent(self, cursor: str) -> Recent:
        answer = await super().recent(cursor)
        for record in self._traffic:
            self.ring.record(record)
        self._traffic = []
        self.is_draining = self.questions == 2
        return answer


async def tapped(*args: str, traffic: Iterable[RequestRecord] = TRAFFIC) -> Result:
    async with serving(create_admin(Busy(traffic), None)) as address:
        return await run(address, "tap", *args)


def names(result: Result) -> list[str]:
    return [json.loads(line)["name"] for line in result.stdout.splitlines()]


async def test_every_exchange_is_a_line_until_the_proxy_drains() -> None:
    result = await tapped()

    assert (result.exit_code, result.stderr) == (0, "the proxy is draining\n")
    first, second, *_, last = result.stdout.splitlines()
    assert first.split() == [
        "01:53:20.125",
        "200",
        "12.5",
        "ms",
        "weather",
        ONE,
        "0a1b2c3d",
        "--",
        "tools/call",
        "well",
    ]
    assert second.endswith("--  tools/call refused (no_backend)")
    assert last.split() == ["01:53:20.125", "-", "12.5", "ms", "-", "-", "-", "--", "GET"]
    assert len(result.stdout.splitlines()) == len(TRAFFIC)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ["well", "refused", "cut", "left", "elsewhere", ""]),
        (["--pool", "other"], ["elsewhere"]),
        (["--method", "tools/list"], ["elsewhere"]),
        (
            ["--method", "tools/list", "--method", "tools/call", "--pool", "weather"],
            ["well", "refused", "cut", "left"],
        ),
        (["--errors"], ["refused", "cut"]),
        (["--errors", "--pool", "other"], []),
    ],
)
async def test_what_is_not_meant_is_left_out(args: list[str], expected: list[str]) -> None:
    assert names(await tapped("--json", *args)) == expected


async def test_a_line_of_json_is_the_line_of_the_access_log() -> None:
    (line,) = (await tapped("--json", traffic=TRAFFIC[:1])).stdout.splitlines()

    assert json.loads(line)["overhead_ms"] == 0.5
    assert json.loads(line)["peer"] == "10.1.2.3"


async def test_a_terminal_gets_nothing_to_obey() -> None:
    result = await tapped(traffic=[call(name="\x1b[31m\nname")])

    assert "\x1b" not in result.output
    assert len(result.stdout.splitlines()) == 1


async def test_what_was_missed_is_said() -> None:
    result = await tapped(traffic=[call()] * 3000)

    assert len(result.stdout.splitlines()) == SIZE
    assert f"{3000 - SIZE} events were not shown" in result.stderr


async def test_a_change_of_a_backend_is_news_and_no_result() -> None:
    class Changing(Operated):
        async def recent(self, cursor: str) -> Recent:
            answer = await super().recent(cursor)
            self.set("weather", TWO, state="up")
            self.is_draining = self.questions == 10
            return answer

    async with serving(create_admin(Changing(), None)) as address:
        result = await run(address, "tap")

    assert result.stdout == ""
    assert f"weather: {TWO} down -> up\n" in result.stderr


async def test_an_interrupt_ends_it_and_is_no_failure() -> None:
    class Watched(Operated):
        is_asked = asyncio.Event()

        async def recent(self, cursor: str) -> Recent:
            self.is_asked.set()
            return await super().recent(cursor)

    view = Watched()
    async with serving(create_admin(view, None)) as address:
        process = await start(address, "tap")
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            await view.is_asked.wait()
            view.ring.record(call(name="seen"))
            line = await process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()

    assert b"tools/call seen" in line
    assert (process.returncode, err.strip()) == (0, b"")


# --- what else may be there -------------------------------------------------------------------------

BODIES = {
    "nothing": (b"", "without a word"),
    "other events": (b": x\n\nevent: new\ndata: 1\n\nevent: exchange\ndata: {\n\nid\n\n", "without a word"),
    "no end": (b"x" * (EVENT_LIMIT + 1), "check the address"),
    "a failure": (b'event: end\ndata: {"reason":"failed"}\n\n', "see its log"),
}


@pytest.mark.parametrize(("body", "words"), BODIES.values(), ids=BODIES.keys())
async def test_a_stream_that_breaks_off_is_1_with_a_sentence(body: bytes, words: str) -> None:
    async def stranger(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with serving(stranger) as address:
        result = await run(address, "tap")

    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr


@pytest.fixture
async def full() -> AsyncIterator[str]:
    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        body = b'{"error":{"reason":"too_many_readers","detail":"16 listen already"}}'
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with serving(refusing) as address:
        yield address


async def test_a_refusal_is_1_with_its_reason(full: str) -> None:
    result = await run(full, "tap")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "16 listen already" in result.stderr
