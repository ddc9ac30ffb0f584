"""The self-test finds readers that lie, and no other.

Rules of this file: nothing is timed. A reader lies if it gives an event only when more has come; the server
of the self-test sends more only when it was given. ``locust``'s own client is such a reader (and the reason
for all this); it needs gevent, so it is run in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mcp_proxy.load import Target
from mcp_proxy.load.connection import Connection
from mcp_proxy.load.selftest import EVENTS, own_reader, self_test
from mcp_proxy.load.sse import SseParser
from tests.tools import PATIENCE_S

BRIEF_S = 0.2
"""Only who lies is waited for."""


def _events(where: Target, size: int) -> Iterator[tuple[int, float]]:
    """Like clients that collect ``size`` bytes before they give any."""
    connection = Connection(where)
    reply = connection.ask("GET", [], None, PATIENCE_S)
    parser, kept = SseParser(), b""
    while data := reply.some(PATIENCE_S):
        kept += data
        if len(kept) >= size:
            for event in parser.feed(kept):
                yield int(event.data or 0), time.perf_counter()
            kept = b""
    for event in parser.feed(kept):
        yield int(event.data or 0), time.perf_counter()
    connection.close()


def test_the_reader_of_the_users_sees_every_event_when_it_comes() -> None:
    assert self_test() is None
    assert self_test(own_reader) is None


def test_a_reader_that_waits_for_a_size_is_found_out() -> None:
    assert self_test(lambda where: _events(where, 1)) is None
    assert (
        self_test(lambda where: _events(where, 1024), BRIEF_S)
        == f"event 1 of {EVENTS} was not seen when it came"
    )


def test_a_reader_whose_clock_is_wrong_is_found_out() -> None:
    def late(where: Target) -> Iterator[tuple[int, float]]:
        return ((number, at + 3600) for number, at in own_reader(where))

    def early(where: Target) -> Iterator[tuple[int, float]]:
        return ((number, at - 3600) for number, at in own_reader(where))

    for reader in (late, early):
        assert self_test(reader) == "the time of event 1 is not the time at which it came"


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ([0, 0], "event 0 came out of order"),
        ([1], "event 1 came out of order"),
        ([], f"0 of {EVENTS} events were seen"),
    ],
)
def test_a_reader_that_sees_other_events_is_found_out(numbers: list[int], found: str) -> None:

    def reader(where: Target) -> Iterator[tuple[int, float]]:
        with_connection = Connection(where)
        with_connection.ask("GET", [], None, PATIENCE_S)
        yield from ((number, time.perf_counter()) for number in numbers)
        with_connection.close()

    assert self_test(reader, BRIEF_S) == found


def test_a_reader_that_breaks_or_never_comes_is_found_out() -> None:

    def breaks(where: Target) -> Iterator[tuple[int, float]]:
        raise ValueError("no")

    assert self_test(breaks, BRIEF_S) == "the reader broke: ValueError('no')"
    assert self_test(lambda where: iter([]), BRIEF_S) == "the reader never connected"


LOCUST = """
from gevent import monkey; monkey.patch_all()
import time
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment
from mcp_proxy.load import selftest

def lines(where):
    session = FastHttpSession("http://127.0.0.1:%d" % where.port, Environment().events.request, None)
    for line in session.iter_lines("/mcp"):
        if line.startswith("data: "):
            yield int(line[6:]), time.perf_counter()

print(selftest.self_test())
print(selftest.self_test(lines, 0.5))
"""


def test_the_clients_own_lines_of_locust_are_found_out_under_gevent_and_ours_are_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCUST], capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False
    )
    ours, locusts = done.stdout.strip().splitlines()
    assert ours == "None", done.stderr
    assert locusts == f"event 1 of {EVENTS} was not seen when it came", done.stderr
