"""The parts beneath the registry that need no server: batches, the slot table, values."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import ENDED, SessionRecord
from mcp_proxy.sessions.remote import values
from mcp_proxy.sessions.remote.breaker import THRESHOLD
from mcp_proxy.sessions.remote.lane import BATCH_LIMIT, IN_FLIGHT, Answer, Command, Lane, LinkError
from mcp_proxy.sessions.remote.slots import SLOTS, Node, SlotTable, slot_of
from mcp_proxy.tasks import Tasks
from tests.unit.redis_registry import fails, outcomes


class Server:
    """Answers every command with itself, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[Command]] = []
        self.cause = ""
        self.answers = asyncio.Event()
        self.answers.set()
        self.tasks = Tasks()
        self.turns: list[str | None] = []
        self.lane = Lane(self.exchange, self.tasks, 5.0, self.turns.append)

    async def exchange(self, commands: Sequence[Command]) -> list[Answer]:
        self.batches.append(list(commands))
        await self.answers.wait()
        if self.cause:
            raise LinkError(self.cause)
        return list(commands)


async def test_a_tick_is_a_batch_and_every_operation_gets_its_own_answers() -> None:
    server = Server()
    operations = [[("GET", n)] * (1 + n % 3) for n in range(50)]

    found = await outcomes(*map(server.lane.submit, operations))

    assert found == operations
    assert server.batches == [[command for commands in operations for command in commands]]


async def test_only_so_many_batches_are_under_way_and_the_rest_gathers() -> None:
    server = Server()
    server.answers.clear()
    waiting = []
    for n in range(IN_FLIGHT + 20):
        waiting.append(server.lane.submit([("GET", n)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(server.batches) == IN_FLIGHT

    server.answers.set()

    assert await outcomes(*waiting) == [[("GET", n)] for n in range(IN_FLIGHT + 20)]
    assert len(server.batches) == IN_FLIGHT + 1


async def test_a_batch_is_bounded() -> None:
    server = Server()

    await outcomes(*(server.lane.submit([("GET", n)]) for n in range(BATCH_LIMIT * 2 + 1)))

    assert [len(batch) for batch in server.batches] == [BATCH_LIMIT, BATCH_LIMIT, 1]


async def test_when_the_breaker_opens_whoever_waits_fails_at_once() -> None:
    server = Server()
    server.answers.clear()
    server.cause = "connection refused"
    waiting = []
    for n in range(IN_FLIGHT + 5):
        waiting.append(server.lane.submit([("GET", n)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    server.answers.set()

    failed = await outcomes(*waiting)

    assert all(str(outcome) == "redis: connection refused" for outcome in failed)
    assert len([batch for batch in server.batches if batch != [("PING",)]]) == IN_FLIGHT
    assert server.turns == ["connection refused"]
    with pytest.raises(StoreError, match="unreachable"):
        server.lane.submit([("GET", 1)])
    server.lane.close()
    await server.tasks.aclose()


async def test_a_single_probe_closes_the_breaker() -> None:
    server = Server()
    server.cause = "connection refused"
    for _ in range(THRESHOLD):
        await fails(server.lane.submit([("GET", 1)]))
    server.cause = ""
    server.batches.clear()
    async with asyncio.timeout(20):
        while not server.lane.breaker.is_closed:  # noqa: ASYNC110 - nobody is told by the breaker
            await asyncio.sleep(0.005)

    # Those behind the first open the connections for the burst that waits.
    assert server.batches[0] == [("PING",)]
    assert len(server.batches) <= 1 + IN_FLIGHT
    assert server.turns == ["connection refused", None]
    assert await server.lane.submit([("GET", 1)]) == [("GET", 1)]


async def test_tasks_that_are_closed_first_leave_nobody_waiting() -> None:
    server = Server()
    server.answers.clear()
    under_way = server.lane.submit([("GET", 1)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await server.tasks.aclose()
    later = server.lane.submit([("GET", 2)])

    assert all(isinstance(outcome, StoreError) for outcome in await outcomes(under_way, later))


# --- slots ----------------------------------------------------------------------------------------

ONE, TWO = Node("10.0.0.1", 1), Node("10.0.0.2", 2)


@pytest.mark.parametrize(
    ("key", "slot"),
    # From the Redis Cluster specification and CLUSTER KEYSLOT.
    [
        (b"123456789", 12739),
        (b"foo", 12182),
        (b"foo{hash_tag}", 2515),
        (b"bar{hash_tag}", 2515),
        (b"foo{}{bar}", 8363),
        (b"foo{{bar}}zap", 4015),
        (b"foo{bar}{zap}", 5061),
        (b"", 0),
    ],
)
def test_keys_are_in_the_slots_of_the_specification(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


def test_an_answer_to_cluster_slots_becomes_a_table() -> None:
    table = SlotTable.from_answer(
        [
            [8192, 16383, [b"10.0.0.2", 2, b"b" * 40, []], [b"10.0.0.9", 9, b"c" * 40, []]],
            [0, 8000, [b"", 1, b"a" * 40, []]],
        ],
        asked="10.0.0.1",
    )

    assert [table.owner(slot) for slot in (0, 8000, 8001, 8191, 8192, 16383)] == [
        ONE,
        ONE,
        None,
        None,
        TWO,
        TWO,
    ]
    assert table.nodes == {ONE, TWO}
    table.move(8001, TWO)
    table.move(3, TWO)
    assert [table.owner(slot) for slot in (2, 3, 8001)] == [ONE, TWO, TWO]


@pytest.mark.parametrize(
    "answer", [None, b"OK", 5, [1], [[1, 2]], [[1, 2, []]], [[b"x", 2, [b"h", 1, b"i"]]]]
)
def test_what_is_no_answer_to_cluster_slots_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="CLUSTER SLOTS"):
        SlotTable.from_answer(answer, asked="h")


@given(st.lists(st.integers(1, SLOTS - 1), unique=True, max_size=20))
def test_every_slot_of_a_whole_table_has_the_owner_of_its_range(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), SLOTS]
    ranges = [(a, b - 1, Node("h", n), str(n)) for n, (a, b) in enumerate(pairwise(edges))]
    table = SlotTable(reversed(ranges))

    for first, last, node, _ in ranges:
        assert table.owner(first) == table.owner(last) == node


# --- values ---------------------------------------------------------------------------------------

RECORDS = st.builds(
    SessionRecord,
    backend=st.text(),
    principal=st.text(),
    upstream_id=st.binary(max_size=512),
    generation=st.integers(0, 1 << 60),
    initialize=st.binary(max_size=2000),
    created_s=st.integers(0, 1 << 40),
)


@given(RECORDS, RECORDS)
def test_records_survive_and_equal_records_have_equal_bytes(one: SessionRecord, other: SessionRecord) -> None:
    assert values.decode(values.encode(one)) == one
    assert (values.encode(one) == values.encode(other)) == (one == other)


@given(st.one_of(st.binary(), st.text().map(str.encode), st.integers(), st.lists(st.binary())))
def test_whatever_is_there_is_never_nothing(value: object) -> None:
    try:
        held = values.decode(value)
    except values.Unreadable:
        return
    assert held is ENDED or isinstance(held, SessionRecord)


def test_an_end_is_an_end_in_any_notation() -> None:
    assert values.decode(values.TOMBSTONE) is ENDED
    assert values.decode(b'{"ended": true, "v": 1, "by": "somebody"}') is ENDED
    assert values.decode(None) is None
