"""The pure parts of the load test: what is due when, who does what, what is harmless, what is kept.

Rules of this file: values in, values out.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.cli import load as command
from mcp_proxy.cli import load_order
from mcp_proxy.load import CLASSES, Facts, Plan, messages, mix, shapes, target, tools
from mcp_proxy.load.abuse import TABLE, fault, is_possible
from mcp_proxy.load.conduct import share_of
from mcp_proxy.load.endpoints import STARTED
from mcp_proxy.load.pace import Pace
from mcp_proxy.replies import TABLE as REPLIES

# --- where ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "written", "authority"),
    [
        ("http://localhost:3000/mcp", "http://localhost:3000/mcp", "localhost:3000"),
        ("http://localhost:3000", "http://localhost:3000/mcp", "localhost:3000"),
        ("http://localhost:3000/", "http://localhost:3000/mcp", "localhost:3000"),
        ("https://a.example/x?y=1", "https://a.example/x?y=1", "a.example"),
        ("http://[::1]:80/mcp", "http://[::1]/mcp", "[::1]"),
    ],
)
def test_a_url_is_where_requests_go(url: str, written: str, authority: str) -> None:
    assert (target(url).url, target(url).authority) == (written, authority)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:3000",
        "ftp://a/mcp",
        "http://",
        "http://u:p@a/mcp",
        "http://a:0x/mcp",
        "http://a/ b",
        "http://ä/",
    ],
)
def test_what_is_no_url_of_a_server_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(ValueError, match=r" "):
        target(url)


# --- when -------------------------------------------------------------------------------------


def test_turns_are_due_at_fixed_times_however_late_the_last_was() -> None:
    pace = Pace(10, 100.0, random.Random(1))
    first = pace.due
    assert first is not None
    assert 100.0 <= first <= 100.1
    assert pace.wait_s(first) == pytest.approx(0.1)
    assert pace.wait_s(first + 5) == 0.0, "a late turn is sent at once"
    assert pace.due == pytest.approx(first + 0.2), "and was due when it was due"


def test_without_a_pace_a_turn_follows_the_last() -> None:
    pace = Pace(None, 100.0, random.Random(1))
    assert pace.due is None
    assert pace.wait_s(200.0) == 0.0


def test_users_that_begin_together_are_not_due_together() -> None:
    assert len({Pace(1, 0.0, random.Random(seed)).due for seed in range(20)}) == 20


@given(st.sampled_from(sorted(shapes.SHAPES)), st.integers(1, 1000), st.floats(0, 100))
def test_a_shape_never_has_more_users_than_it_may_nor_none(name: str, total: int, at_s: float) -> None:
    assert 1 <= shapes.users_at(name, total, at_s, 100.0) <= total


def test_shapes_are_what_their_names_say() -> None:
    def course(name: str) -> list[int]:
        return [shapes.users_at(name, 100, at, 100.0) for at in range(100)]

    assert set(course("smoke")) == set(course("drain")) == {100}
    ramp = course("ramp")
    assert ramp == sorted(ramp)
    assert ramp[0] < 20
    assert ramp[-1] == 100
    spike = course("spike")
    assert spike[0] == spike[-1] == 10
    assert spike[50] == 100
    assert course("soak")[6:] == [100] * 94
    for name in shapes.SHAPES:
        middle = sum(shapes.SHAPES[name].steady) / 2
        assert shapes.is_steady(name, middle * 100, 100.0)
        assert course(name)[int(middle * 100)] == 100


def test_the_command_offers_what_there_is() -> None:
    assert set(command._SHAPES) == set(shapes.SHAPES)
    assert load_order.STARTED == STARTED


# --- who --------------------------------------------------------------------------------------


def test_a_mix_is_read_and_written_back() -> None:
    assert mix.parse("modern=3, session=6,abuse=0") == {"session": 6.0, "modern": 3.0}
    assert mix.written(mix.parse("modern=3,session=6")) == "session=6,modern=3"


@pytest.mark.parametrize(
    "text", ["", "session", "session=", "session=-1", "nobody=1", "session=1,session=2", "abuse=0"]
)
def test_what_is_no_mix_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r" "):
        mix.parse(text)


@given(
    st.dictionaries(st.sampled_from(CLASSES), st.integers(1, 50).map(float), min_size=1), st.integers(1, 200)
)
def test_there_is_one_user_of_every_kind_before_there_are_two_of_one(
    weights: dict[str, float], total: int
) -> None:
    users = mix.users_of(weights, total)
    assert len(users) == total
    assert len(set(users[: len(weights)])) == min(total, len(weights))


def test_users_are_in_proportion_to_their_weights() -> None:
    assert Counter(mix.users_of(mix.DEFAULT, 130)) == {
        kind: 10 * weight for kind, weight in mix.DEFAULT.items()
    }


@given(st.integers(5, 100), st.integers(1, 8), st.sampled_from(["smoke", "ramp"]))
def test_processes_share_all_users_and_nobody_twice(total: int, processes: int, shape: str) -> None:
    whole = Plan(target("http://a"), shape, 1.0, total, dict(mix.DEFAULT), Facts(), locust_html="x", seed=5)
    shares = [share_of(whole, number, processes) for number in range(processes)]
    assert sum(each.users for each in shares) == total
    assert len({each.seed for each in shares}) == processes
    if shape == "smoke":
        together = sum((Counter(each.counts) for each in shares), Counter())
        assert together == Counter(mix.users_of(mix.DEFAULT, total))
    assert all(each.locust_html is None for each in shares) or processes == 1


# --- what may be called -----------------------------------------------------------------------


def tool(name: str, **over: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, **over}


def test_a_tool_that_only_reads_comes_before_one_that_sounds_so() -> None:
    listed = [tool("get_time"), tool("frobnicate", annotations={"readOnlyHint": True})]
    assert [each.name for each in tools.candidates(listed)] == ["frobnicate", "get_time"]


@pytest.mark.parametrize(
    "listed",
    [
        tool("delete_all"),
        tool("get_out", annotations={"destructiveHint": True}),
        tool("get_in", annotations={"readOnlyHint": False}),
        tool("get", inputSchema={"required": ["city"]}, annotations={"readOnlyHint": True}),
        tool(""),
        {"annotations": {"readOnlyHint": True}},
        "get",
        None,
    ],
)
def test_a_tool_that_may_do_harm_or_needs_arguments_is_never_called(listed: object) -> None:
    assert tools.candidates([listed]) == []


def test_a_tool_that_only_sounds_harmless_is_none_where_it_has_to_say_so() -> None:
    listed = [tool("get_time"), tool("frobnicate", annotations={"readOnlyHint": True})]
    assert [each.name for each in tools.candidates(listed, must_say=True)] == ["frobnicate"]


@pytest.mark.parametrize("listed", [None, 7, {}, []])
def test_a_strange_list_of_tools_has_none(listed: object) -> None:
    assert tools.candidates(listed) == []


# --- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"id": 1, "result": {}}, None),
        ({"id": 1, "result": {"isError": False}}, None),
        ({"id": 1, "result": {"isError": True}}, "isError in the result"),
        ({"id": 1, "error": {"code": -32603}}, "JSON-RPC error -32603"),
        ({"id": None, "error": {}}, "JSON-RPC error without a code"),
        ({"id": 1, "error": "x"}, "JSON-RPC error without a code"),
        ({"id": 2, "result": {}}, "an answer to something else"),
        ({"id": True, "result": {}}, "an answer to something else"),
        ({"id": 1, "method": "ping", "result": {}}, "an answer to something else"),
        ({"id": 1}, "an answer without a result"),
        ({"id": 1, "result": 7}, "an answer without a result"),
    ],
)
def test_an_answer_is_right_when_it_has_a_result_for_the_id(
    message: dict[str, Any], fault: str | None
) -> None:
    assert messages.fault(message, 1) == fault


@pytest.mark.parametrize(
    ("name", "value"),
    [("get", "get"), ("a b", "a b"), ("zażółć", "=?base64?emHFvMOzxYLEhw==?="), (" a", "=?base64?IGE=?=")],
)
def test_a_name_is_mirrored_as_the_specification_has_it(name: str, value: str) -> None:
    fields = messages.modern_fields("tools/call", {"name": name})
    assert fields == [
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", value),
    ]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"params": 1},
        {"method": "notifications/progress", "params": {"progress": True}},
        {"params": {"data": 1}},
    ],
)
def test_a_message_without_a_number_has_none(message: dict[str, Any]) -> None:
    assert messages.progress(message) is None


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("abuse", TABLE.values(), ids=lambda abuse: abuse.name)
def test_an_abuse_expects_what_the_proxy_says_in_its_own_table(abuse: Any) -> None:
    for word in abuse.words:
        assert REPLIES[word].status == abuse.status


@pytest.mark.parametrize(
    ("status", "word", "body", "is_right"),
    [
        (404, "session_not_found", b'{"error":{"data":{"reason":"session_not_found"}}}', True),
        (404, "session_not_found", b'{"error":{"data":{"reason":"not_found"}}}', False),
        (404, "session_not_found", b"{}", False),
        (400, "session_not_found", b'{"error":{"data":{"reason":"session_not_found"}}}', False),
        (404, "not_found", b'{"error":{"data":{"reason":"not_found"}}}', False),
        (429, "edge_too_many_requests", b"", True),
        (404, None, b"", True),
        (503, None, b"", False),
        (200, None, b"", False),
    ],
)
def test_only_its_own_word_is_right_of_the_proxy(
    status: int, word: str | None, body: bytes, is_right: bool
) -> None:
    abuse = TABLE["unknown session"]
    found = fault(abuse, status, word, body, "application/json", is_proxy=True)
    assert (found is None) is is_right


@pytest.mark.parametrize(
    ("status", "is_right"), [(400, True), (422, True), (200, False), (302, False), (500, False)]
)
def test_of_any_other_server_every_4xx_is_right(status: int, is_right: bool) -> None:
    found = fault(TABLE["bad JSON"], status, None, b"", "text/plain", is_proxy=False)
    assert (found is None) is is_right


def test_what_a_server_does_not_have_cannot_be_abused() -> None:
    modern_only = Facts(modern=True)
    possible = [name for name, abuse in TABLE.items() if is_possible(abuse, modern_only)]
    assert "no _meta" in possible
    assert "unknown session" not in possible
    assert "GET without a session" not in possible


@pytest.mark.parametrize("kind", CLASSES)
def test_users_that_have_nothing_to_do_are_not_served(kind: str) -> None:
    assert not Facts().serves(kind)
