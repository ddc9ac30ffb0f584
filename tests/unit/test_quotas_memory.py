"""What a process may still take on when it has too much memory."""

from __future__ import annotations

import logging
import os
import resource

import pytest

from mcp_proxy.quotas import FLOOR, LOOK_S, UNBOUNDED, Pressure, Quotas, pressure, resident_bytes
from tests.unit.test_quotas import CALL, EXEMPT, INITIALIZE, OVERLOADED, STREAM, Asking, said

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("before", "used", "after"),
    [
        (Pressure.NONE, 0, Pressure.NONE),
        (Pressure.NONE, 1000, Pressure.NONE),
        (Pressure.NONE, 1001, Pressure.STREAMS),
        (Pressure.NONE, 1100, Pressure.STREAMS),
        (Pressure.NONE, 1101, Pressure.ALL),
        (Pressure.STREAMS, 1100, Pressure.STREAMS),
        (Pressure.STREAMS, 1101, Pressure.ALL),
        (Pressure.STREAMS, 951, Pressure.STREAMS),
        (Pressure.STREAMS, 950, Pressure.NONE),
        (Pressure.ALL, 1051, Pressure.ALL),
        (Pressure.ALL, 1050, Pressure.STREAMS),
        (Pressure.ALL, 951, Pressure.STREAMS),
        (Pressure.ALL, 950, Pressure.NONE),
    ],
)
def test_pressure_begins_at_its_line_and_ends_below_it(before: Pressure, used: int, after: Pressure) -> None:
    assert pressure(used, 1000, before) is after


class Memory:
    """What the system says about memory, and how often it was asked."""

    def __init__(self) -> None:
        self.used: int | None = 0
        self.looks = 0

    def __call__(self) -> int | None:
        self.looks += 1
        return self.used


def watched(limit: int = 100 * MIB) -> tuple[Quotas, Memory]:
    """Quotas with ``FLOOR`` streams and as many calls in progress: more is up to the memory."""
    memory = Memory()
    held = Quotas(streams=FLOOR + 9, requests=FLOOR + 9, memory=limit, resident=memory)
    for asking in [STREAM, CALL] * FLOOR:
        assert said(asking.enter(held)) is None
    return held, memory


def test_memory_sheds_streams_first_then_requests_and_lets_them_back() -> None:
    held, memory = watched()
    seen = []
    for at_s, used in enumerate([99, 101, 111, 106, 104, 96, 94]):
        memory.used = used * MIB
        held.sweep(at_s * LOOK_S)
        answers = []
        for asking in (STREAM, INITIALIZE):
            refusal = asking.enter(held)
            answers.append(said(refusal))
            if refusal is None:
                asking.leave(held)
            else:
                assert refusal.detail == "limits.memory is exceeded"
        seen.append((used, *answers))
    assert seen == [
        (99, None, None),
        (101, OVERLOADED, None),
        (111, OVERLOADED, OVERLOADED),
        (106, OVERLOADED, OVERLOADED),
        (104, OVERLOADED, None),
        (96, OVERLOADED, None),
        (94, None, None),
    ]


@pytest.mark.parametrize("asking", [STREAM, CALL], ids=["stream", "request"])
def test_without_memory_whoever_leaves_makes_room_for_another(asking: Asking) -> None:
    held, memory = watched()
    for _ in range(3):
        asking.enter(held)
    memory.used = 200 * MIB
    held.sweep(0.0)
    assert said(asking.enter(held)) == OVERLOADED
    for _ in range(5):
        asking.leave(held)
    assert [said(asking.enter(held)) for _ in range(6)] == [None] * 5 + [OVERLOADED]


@pytest.mark.parametrize("asking", [STREAM, CALL], ids=["stream", "request"])
def test_a_few_are_served_for_all_the_memory_in_use(asking: Asking) -> None:
    held = Quotas(streams=99, requests=99, memory=100 * MIB, resident=lambda: 500 * MIB)
    held.sweep(0.0)
    assert [said(asking.enter(held)) for _ in range(FLOOR + 2)] == [None] * FLOOR + [OVERLOADED] * 2


@pytest.mark.parametrize("asking", [STREAM, CALL], ids=["stream", "request"])
def test_want_of_memory_never_raises_a_limit(asking: Asking) -> None:
    held = Quotas(streams=1, requests=1, memory=100 * MIB, resident=lambda: 500 * MIB)
    held.sweep(0.0)
    refusals = [asking.enter(held) for _ in range(2)]
    assert [said(refusal) for refusal in refusals] == [None, OVERLOADED]
    assert refusals[1] is not None
    assert refusals[1].detail in ("limits.streams is reached", "limits.requests is reached")


@pytest.mark.parametrize("asking", EXEMPT.values(), ids=EXEMPT.keys())
def test_what_frees_something_comes_through_without_memory(asking: Asking) -> None:
    held, memory = watched()
    memory.used = 200 * MIB
    held.sweep(0.0)
    assert said(CALL.enter(held)) == OVERLOADED
    assert said(asking.enter(held)) is None


def test_memory_is_looked_at_once_a_second_and_only_if_it_is_limited() -> None:
    held, memory = watched()
    for tick in range(31):
        held.sweep(100 + tick * LOOK_S / 10)
    assert memory.looks == 4
    held.limit(9, 9, UNBOUNDED, UNBOUNDED, None)
    held.sweep(1e9)
    assert memory.looks == 4


def test_a_look_that_fails_changes_nothing() -> None:
    held, memory = watched()
    for at_s, used in ((0, None), (1, 200 * MIB), (2, None)):
        memory.used = used
        held.sweep(at_s * LOOK_S)
        assert held.pressure is (Pressure.NONE if at_s == 0 else Pressure.ALL)


def test_without_a_limit_the_pressure_is_over() -> None:
    held, memory = watched()
    memory.used = 200 * MIB
    held.sweep(0.0)
    assert [said(asking.enter(held)) for asking in (CALL, STREAM)] == [OVERLOADED] * 2
    held.limit(99, 99, UNBOUNDED, UNBOUNDED, None)
    assert [said(asking.enter(held)) for asking in (CALL, STREAM)] == [None, None]


def test_every_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mcp_proxy")
    held, memory = watched()
    for at_s, used in enumerate([50, 101, 102, 111, 112, 50, 50]):
        memory.used = used * MIB
        held.sweep(at_s * LOOK_S)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "101 MiB in use, limits.memory is 100 MiB: at most 8 streams"),
        ("WARNING", "111 MiB in use, limits.memory is 100 MiB: at most 8 streams and 8 requests"),
        ("INFO", "50 MiB in use, limits.memory is 100 MiB: as many streams and requests as ever"),
    ]


def test_the_resident_memory_is_that_of_this_process() -> None:
    used = resident_bytes()
    assert used is not None
    # The peak is counted per thread and added up now and then, so it may be behind.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert most / 4 < used < 2 * most


def test_memory_that_cannot_be_looked_at_for_want_of_a_descriptor_is_unknown() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        used = resident_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert used is None
