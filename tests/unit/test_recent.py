"""The ring of what has just been recorded: what a watcher sees, misses and costs."""

from __future__ import annotations

import json

import msgspec
import pytest

from mcp_proxy.telemetry import Sink
from mcp_proxy.telemetry.recent import CURSOR_LIMIT, WATCHED_S, Recent, Ring, split, together
from tests.unit.operated import call


def names(answer: Recent) -> list[str]:
    return [line.name for line in answer.lines]


@pytest.fixture
def ring() -> Ring:
    return Ring(size=4)


def record(ring: Sink, *names: str) -> None:
    for name in names:
        ring.record(call(name=name))


def test_while_nobody_watches_nothing_is_kept(ring: Ring) -> None:
    record(ring, "before")

    first = ring.recent("", 0.0)

    assert (first.lines, first.missed) == ([], 0)


def test_a_watcher_gets_everything_once_and_in_order(ring: Ring) -> None:
    cursor = ring.recent("", 0.0).cursor
    record(ring, "a", "b")
    first = ring.recent(cursor, 0.1)
    record(ring, "c")
    second = ring.recent(first.cursor, 0.2)

    assert (names(first), names(second)) == (["a", "b"], ["c"])
    assert ring.recent(second.cursor, 0.3).lines == []


def test_two_watchers_do_not_take_from_each_other(ring: Ring) -> None:
    one, other = ring.recent("", 0.0).cursor, ring.recent("", 0.0).cursor
    record(ring, "a")

    assert names(ring.recent(one, 0.1)) == names(ring.recent(other, 0.1)) == ["a"]


def test_what_a_slow_watcher_misses_is_counted(ring: Ring) -> None:
    cursor = ring.recent("", 0.0).cursor
    record(ring, *"abcdefg")

    answer = ring.recent(cursor, 0.1)

    assert (names(answer), answer.missed) == (list("defg"), 3)
    assert ring.recent(answer.cursor, 0.2).missed == 0


def test_a_watcher_that_stops_asking_is_forgotten_with_the_records(ring: Ring) -> None:
    cursor = ring.recent("", 0.0).cursor
    record(ring, "a")
    ring.sweep(WATCHED_S - 0.1)
    assert ring.is_watched

    ring.sweep(WATCHED_S)
    record(ring, "b")

    answer = ring.recent(cursor, 20.0)
    assert (answer.lines, answer.missed) == ([], 1), "what it could have seen; b was never kept"


@pytest.mark.parametrize("cursor", ["x", "-", "-1", "abcd-7", "9" * 5000, "\u0663", "a-\u0663"])
def test_a_cursor_of_somebody_else_is_a_first_question(ring: Ring, cursor: str) -> None:
    ring.recent("", 0.0)
    record(ring, "a")

    answer = ring.recent(cursor, 0.1)

    assert (answer.lines, answer.missed) == ([], 0)
    assert Ring().recent(answer.cursor, 0.0).missed == 0


@pytest.mark.parametrize("number", ["-1", "999", "9" * 30, "\u0663", "1.0", ""])
def test_a_cursor_with_another_number_does_no_harm(ring: Ring, number: str) -> None:
    own = ring.recent("", 0.0).cursor.partition("-")[0]
    record(ring, "a")

    answer = ring.recent(f"{own}-{number}", 0.1)

    assert (answer.lines, answer.missed) == ([], 0)


def test_lines_leave_out_what_the_access_log_leaves_out(ring: Ring) -> None:
    cursor = ring.recent("", 0.0).cursor
    ring.record(call(name="https://user:pw@host/file?key=secret", method="m" * 1000))
    ring.record(call(name="lone \ud800 surrogate"))

    answer = ring.recent(cursor, 0.1)

    text = msgspec.json.encode(answer).decode()
    assert "pw" not in text
    assert "secret" not in text
    assert len(answer.lines[0].method) == 256
    assert json.loads(text)["lines"][0]["ts"] == "2025-11-21T01:53:20.125Z"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=Recent) == answer


def test_several_processes_are_one() -> None:
    rings = {"41": Ring(), "42": Ring()}
    cursor = together({name: ring.recent("", 0.0) for name, ring in rings.items()}).cursor
    rings["42"].record(call(name="first", time_s=1.0))
    rings["41"].record(call(name="second", time_s=2.0))
    rings["42"].record(call(name="third", time_s=3.0))

    answer = together({name: ring.recent(split(cursor)[name], 0.1) for name, ring in rings.items()})

    assert names(answer) == ["first", "second", "third"]
    assert set(split(answer.cursor)) == {"41", "42"}
    assert split("") == split("=" * (CURSOR_LIMIT + 1)) == {}


def test_several_processes_are_over_when_all_are() -> None:
    going, over = Recent("a-1", missed=1), Recent("b-1", missed=2, is_over=True)

    assert not together({"1": going, "2": over}).is_over
    assert together({"1": over, "2": over}).is_over
    assert not together({}).is_over, "all of them may be starting"
    assert together({"1": going, "2": over}).missed == 3
