"""What the benchmark reads from packets, and what it compares rows of telemetry with."""

from __future__ import annotations

import pytest

from tests.bench.capture import Packet
from tests.bench.overhead import Turn, in_proxy, turns
from tests.bench.procs import BenchError
from tests.bench.report import Numbers, Results
from tests.bench.telemetry import compare

PROXY, BACKEND = 8080, 9000
ANSWER = b'HTTP/1.1 200 OK\r\n\r\n{"jsonrpc":"2.0","id":%d,"result":{}}'


def ask(at_s: float, call: int, server: int, client: int) -> Packet:
    return Packet(
        at_s, client, server, b'POST /mcp\r\n\r\n{"jsonrpc":"2.0","id":%d,"method":"tools/call"' % call
    )


def more(at_s: float, server: int, client: int) -> Packet:
    return Packet(at_s, client, server, b"more of a body")


def answer(at_s: float, call: int, server: int, client: int) -> Packet:
    return Packet(at_s, server, client, ANSWER % call)


def test_a_call_is_in_the_proxy_before_the_backend_is_asked_and_after_it_has_answered() -> None:
    packets = [
        ask(1, 7, PROXY, 50),
        ask(3, 7, BACKEND, 60),
        answer(10, 7, BACKEND, 60),
        answer(14, 7, PROXY, 50),
    ]
    assert in_proxy(packets, PROXY, BACKEND) == [2 + 4]


def test_a_request_in_several_packets_begins_with_the_first_and_is_there_with_the_last() -> None:
    packets = [more(1, PROXY, 50), ask(2, 7, PROXY, 50), more(3, PROXY, 50), answer(5, 7, PROXY, 50)]
    assert turns(packets, PROXY) == {7: [Turn(1, 3, 5, 7)]}


def test_an_answer_in_several_packets_is_over_with_the_last() -> None:
    packets = [ask(1, 7, PROXY, 50), answer(2, 7, PROXY, 50), answer(4, 7, PROXY, 50)]
    assert turns(packets, PROXY) == {7: [Turn(1, 1, 4, 7)]}


def test_calls_with_the_same_id_are_told_apart_by_their_order_whatever_connection_they_took() -> None:
    packets = [
        *(ask(1, 7, PROXY, 50), ask(2, 7, BACKEND, 60), answer(3, 7, BACKEND, 60), answer(4, 7, PROXY, 50)),
        *(ask(5, 7, PROXY, 50), ask(7, 7, BACKEND, 61), answer(8, 7, BACKEND, 61), answer(11, 7, PROXY, 50)),
    ]
    assert in_proxy(packets, PROXY, BACKEND) == [1 + 1, 2 + 3]


def test_what_is_no_call_does_not_count() -> None:
    other = Packet(1, 50, PROXY, b'POST /mcp\r\n\r\n{"jsonrpc":"2.0","id":1,"method":"initialize"')
    assert turns([other, answer(2, 1, PROXY, 50)], PROXY) == {}


def test_a_call_that_only_one_side_has_seen_is_an_error() -> None:
    with pytest.raises(BenchError, match="are not those"):
        in_proxy([ask(1, 7, PROXY, 50), answer(2, 7, PROXY, 50)], PROXY, BACKEND)


def test_rows_of_telemetry_without_their_reference_are_not_shown() -> None:
    results: Results = {"telemetry": {"metrics": [{"cpu_us": 1.0}]}}
    with pytest.raises(BenchError, match="nothing to compare"):
        compare(results)
    assert results == {}


def test_a_round_of_telemetry_that_a_row_has_not_completed_is_left_out() -> None:
    rows: dict[str, list[Numbers]] = {
        "off": [{"cpu_us": 1.0}, {"cpu_us": 2.0}],
        "metrics + access log": [{"cpu_us": 3.0}],
    }
    compare({"telemetry": rows})
    assert [len(rounds) for rounds in rows.values()] == [1, 1]


def test_rows_of_telemetry_are_compared_within_a_round() -> None:
    cpu_us = {"off": [20.0, 40.0], "metrics + access log": [25.0, 46.0], "traces at 1 %": [27.0, 49.0]}
    results: Results = {
        "telemetry": {name: [{"cpu_us": each} for each in rounds] for name, rounds in cpu_us.items()}
    }
    compare(results)
    assert results["telemetry"]["traces at 1 %"] == [
        {"cpu_us": 27.0, "added_us": 7.0, "traces_us": 2.0},
        {"cpu_us": 49.0, "added_us": 9.0, "traces_us": 3.0},
    ]
