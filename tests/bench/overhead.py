"""Whether the proxy's own metric of its overhead is true: the same calls, seen by the network.

Rules of this file: outside, a call was in the proxy from the last packet of its request to the first packet
to the backend, and from the last packet of the backend's answer to the last packet to the client, by the
kernel's time of each packet (``capture.py``). Inside, it is what two scrapes before and after the load say.
Both must have seen the same number of calls.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from tests.bench import candidates, load
from tests.bench.capture import Capture, Packet
from tests.bench.procs import BenchError, Process, free_port
from tests.bench.report import Numbers, percentile
from tests.tools.redis_server import RedisServer

if TYPE_CHECKING:
    from tests.bench.measure import Bench

PHASE = "overhead"
SECONDS = 1.0
"""Of each load. Longer ones would not fit the ring of the capture."""
COLD_SESSIONS = 1000
LARGE_BYTES = 256 * 1024
LARGE_CALLS = 200
PACED_SHARE = 0.3

_ID = re.compile(rb'"id":(\d+),"method":"tools/call"')
_SAMPLE = re.compile(rb'^mcp_proxy_overhead_seconds_(sum|count)\{route="/mcp"\} (\S+)$', re.MULTILINE)


class Turn(NamedTuple):
    """One request and its answer on one connection: when the first and the last packet of each passed."""

    asks_s: float
    asked_s: float
    answered_s: float
    call: int
    """JSON-RPC id."""


class _Rig(NamedTuple):
    proxy: Process
    backend: Process
    admin_port: int

    def measure(self, run: Callable[[], object]) -> Numbers:
        """What both sides say about the calls of ``run``."""
        before = scrape(self.admin_port)
        waited_ns = self.proxy.waited_ns()
        with Capture([self.proxy.port, self.backend.port]) as capture:
            run()
        waited_ns = self.proxy.waited_ns() - waited_ns
        sum_s, count = (
            after - earlier for after, earlier in zip(scrape(self.admin_port), before, strict=True)
        )
        outside_s = in_proxy(capture.packets(), self.proxy.port, self.backend.port)
        if not count or count != len(outside_s):
            raise BenchError(f"{count:.0f} calls inside, {len(outside_s)} on the network")
        inside_us, outside_us = sum_s / count * 1e6, fmean(outside_s) * 1e6
        return {
            "calls": count,
            "inside_us": inside_us,
            "outside_us": outside_us,
            "outside_p50_us": percentile(outside_s, 50) * 1e6,
            "waited_us": waited_ns / 1000 / count,
            "ratio": inside_us / outside_us,
            "away_percent": abs(inside_us / outside_us - 1) * 100,
        }


def run(bench: Bench) -> None:
    """Adds the phase ``overhead``: one row per load, each once per round."""
    with bench.excluding(PHASE), ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        backend = stack.enter_context(bench.backend())
        rigs = []
        for _ in range(2):
            setup = bench.setup("overhead", backend.port)._replace(
                sessions=f"{{store: redis, url: '{redis.url}'}}", admin_port=free_port()
            )
            process = stack.enter_context(candidates.start("http11", setup))
            rigs.append(_Rig(process, backend, setup.admin_port))
        of_phase = bench.results.setdefault(PHASE, {})
        for number in range(bench.options.rounds):
            bench.say(f"{PHASE}: round {number + 1} of {bench.options.rounds}")
            for name, sample in _LOADS.items():
                of_phase.setdefault(name, []).append(sample(*rigs))


# --- loads ------------------------------------------------------------------------------------------------


def _closed(connections: int) -> Callable[[_Rig, _Rig], Numbers]:
    def sample(rig: _Rig, _other: _Rig) -> Numbers:
        with closing(load.CallLoad(rig.proxy.port, connections)) as calls:
            calls.run(SECONDS / 4)
            return rig.measure(lambda: calls.run(SECONDS))

    return sample


def _paced(rig: _Rig, _other: _Rig) -> Numbers:
    with closing(load.CallLoad(rig.proxy.port, 32)) as calls:
        capacity = calls.run(SECONDS / 4)
        per_s = PACED_SHARE * len(capacity.latencies_s) / capacity.elapsed_s
        return rig.measure(lambda: calls.run_paced(SECONDS, per_s))


def _large(rig: _Rig, _other: _Rig) -> Numbers:
    port = rig.proxy.port
    (session,) = load.open_sessions(port, 1)
    text = '"text":"' + "x" * LARGE_BYTES + '"'
    requests = [load.tool_request(port, session, number, "weather", text) for number in range(LARGE_CALLS)]
    _one_by_one(port, requests[:10])
    return rig.measure(lambda: _one_by_one(port, requests))


def _cold(rig: _Rig, other: _Rig) -> Numbers:
    """The sessions were begun at another replica, and each is called once."""
    port = rig.proxy.port
    sessions = load.open_sessions(other.proxy.port, COLD_SESSIONS)
    requests = [
        load.tool_request(port, session, number, "weather", "") for number, session in enumerate(sessions)
    ]
    _one_by_one(port, requests[:10])
    return rig.measure(lambda: _one_by_one(port, requests[10:]))


def _one_by_one(port: int, requests: Iterable[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", port), load.STALL_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            sock.sendall(request)
            answer = sock.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200") or not answer.endswith(b"}}"):
                raise BenchError(f"unexpected answer to a call: {answer[:400]!r}")


_LOADS: dict[str, Callable[[_Rig, _Rig], Numbers]] = {
    "1 connection": _closed(1),
    "8 connections": _closed(8),
    "32 connections": _closed(32),
    "30 % of capacity": _paced,
    "bodies of 256 KiB": _large,
    "cold sessions": _cold,
}


# --- both sides -------------------------------------------------------------------------------------------


def scrape(admin_port: int) -> tuple[float, float]:
    """Sum in seconds, and count, of the metric."""
    connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=load.STALL_S)
    with closing(connection):
        connection.request("GET", "/metrics")
        found = dict(_SAMPLE.findall(connection.getresponse().read()))
    return float(found.get(b"sum", 0)), float(found.get(b"count", 0))


def in_proxy(packets: Sequence[Packet], proxy_port: int, backend_port: int) -> list[float]:
    """For how long each call was in the proxy. Raises BenchError unless calls at both sides correspond."""
    near, far = (turns(packets, port) for port in (proxy_port, backend_port))
    if {call: len(each) for call, each in near.items()} != {call: len(each) for call, each in far.items()}:
        raise BenchError("the calls of clients are not those of the backend")
    return [
        (outer.answered_s - outer.asked_s) - (inner.answered_s - inner.asks_s)
        for call, each in near.items()
        for outer, inner in zip(each, far[call], strict=True)
    ]


def turns(packets: Sequence[Packet], port: int) -> dict[int, list[Turn]]:
    """The calls to a server, by id and in order. An id is in use once at a time."""
    of_peer: dict[int, list[Packet]] = defaultdict(list)
    for packet in packets:
        if port in (packet.source, packet.target):
            of_peer[packet.source if packet.target == port else packet.target].append(packet)
    found = [turn for each in of_peer.values() for turn in _of_connection(each, port)]
    by_call: dict[int, list[Turn]] = defaultdict(list)
    for turn in sorted(found):
        by_call[turn.call].append(turn)
    return by_call


def _of_connection(packets: Sequence[Packet], port: int) -> list[Turn]:
    found: list[Turn] = []
    asks_s = asked_s = answered_s = 0.0
    call = None
    for packet in sorted(packets, key=lambda packet: packet.at_s):
        if packet.target == port:
            if answered_s and call is not None:
                found.append(Turn(asks_s, asked_s, answered_s, call))
            if answered_s or not asks_s:
                asks_s, answered_s, call = packet.at_s, 0.0, None
            asked_s = packet.at_s
            if call is None and (match := _ID.search(packet.data)):
                call = int(match[1])
        else:
            answered_s = packet.at_s
    if answered_s and call is not None:
        found.append(Turn(asks_s, asked_s, answered_s, call))
    return found
