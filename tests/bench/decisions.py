"""What it costs to decide where a request goes, in a pool of 2 backends and in one of 1,000.

Rules of this file: no sockets; both pools are asked in turns of some milliseconds within each round, so that
a neighbour slows both alike. The choice is what a request does to the roster: who is next, and the
recount that follows when a session begins and another ends. The decision is that and what leads to it,
reading the envelope and making the plan, which no number of backends changes.
"""

from __future__ import annotations

import time
from itertools import cycle, islice
from random import Random
from statistics import median

from mcp_proxy.backends import Backend
from mcp_proxy.backends.roster import Roster
from mcp_proxy.envelope import parse
from mcp_proxy.headers import read_request
from mcp_proxy.routing import Plan, plan_post
from tests.bench.report import Numbers, Results

PHASE = "decisions"
SIZES = (2, 1000)
BATCH = 1000
"""Decisions between two looks at the clock."""
LOAD = 10
"""Sessions and requests that are there, for each backend."""
VALUES = 10_000
"""Different callers, with affinity."""
POLICIES = {
    "least_sessions": ("least_sessions", True, False),
    "least_inflight": ("least_inflight", False, False),
    "round_robin": ("round_robin", False, False),
    "hash": ("hash", False, True),
}
"""``balance``, whether the requests open sessions, whether they have affinity."""


class _Rig:
    """A pool in steady state: with each request that comes another ends, any one of them."""

    def __init__(self, size: int, balance: str, opens_session: bool, has_affinity: bool) -> None:
        self._roster = Roster("bench", balance, slow_start_s=None)
        self._opens_session = opens_session
        count = VALUES if has_affinity else 1
        affinities = [f"caller-{number}".encode() if has_affinity else None for number in range(count)]
        self._affinities = cycle(affinities)
        self._random = Random(1)
        for number in range(size):
            self._roster.put(Backend(f"10.0.{number // 250}.{number % 250}", 8000, b"/mcp"))
        self._busy = [self._begin(next(self._affinities)) for _ in range(LOAD * size)]
        self.run(count)  # slots get their owners

    def run(self, decisions: int) -> float:
        """Seconds of CPU."""
        busy, begin, recount = self._busy, self._begin, self._roster.recount
        ends = [self._random.randrange(len(busy)) for _ in range(decisions)]
        affinities = list(islice(self._affinities, decisions))
        started_ns = time.process_time_ns()
        for number, affinity in zip(ends, affinities, strict=True):
            backend = busy[number]
            backend.inflight -= 1
            if self._opens_session:
                backend.sessions -= 1
                recount(backend)
            busy[number] = begin(affinity)
        return (time.process_time_ns() - started_ns) / 1e9

    def _begin(self, affinity: bytes | None) -> Backend:
        backend = self._roster.next((), affinity, opens_session=self._opens_session, is_modern=False)
        assert backend is not None
        backend.inflight += 1
        if self._opens_session:
            backend.sessions += 1
            self._roster.recount(backend)
        return backend


_HEAD = read_request(
    [
        (b"host", b"proxy.example"),
        (b"content-type", b"application/json"),
        (b"mcp-protocol-version", b"2026-07-28"),
        (b"mcp-method", b"tools/call"),
        (b"mcp-name", b"echo"),
    ]
)
_BODY = (
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"},'
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":'
    b'{"name":"bench","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}'
)


def _understand() -> float:
    """Seconds of CPU that go before as many choices."""
    started_ns = time.process_time_ns()
    plans = [plan_post(_HEAD, parse(_BODY)) for _ in range(BATCH)]
    seconds = (time.process_time_ns() - started_ns) / 1e9
    assert isinstance(plans[0], Plan), plans[0]
    return seconds


def run(results: Results, rounds: int, seconds: float) -> None:
    """Adds the phase ``decisions``: ``small_us`` and ``large_us`` per choice and their ``choice_ratio``;
    ``before_us`` for what goes before it, and the ``ratio`` of whole decisions."""
    of_phase = results.setdefault(PHASE, {})
    for policy, (balance, opens_session, has_affinity) in POLICIES.items():
        rigs = [_Rig(size, balance, opens_session, has_affinity) for size in SIZES]
        of_phase[policy] = [_round(rigs, seconds / len(POLICIES)) for _ in range(rounds)]


def _round(rigs: list[_Rig], seconds: float) -> Numbers:
    """The medians of many short turns: one that a neighbour interrupts does not count."""
    turns: list[list[float]] = []
    until_s = time.monotonic() + seconds
    while not turns or time.monotonic() < until_s:
        turns.append([_understand(), *(rig.run(BATCH) for rig in rigs)])
    before_us, small_us, large_us = (median(column) * 1e6 / BATCH for column in zip(*turns, strict=True))
    return {
        "before_us": before_us,
        "small_us": small_us,
        "large_us": large_us,
        "choice_ratio": large_us / small_us,
        "ratio": (before_us + large_us) / (before_us + small_us),
    }
