"""What endpoints have in common, so that a comparison is one of the same load.

Rules of this file: values in, values out; a comparison is looked at as far as its plans, of two real servers.
"""

from __future__ import annotations

import contextlib

import msgspec

from mcp_proxy.load import Tool
from mcp_proxy.load.alike import alike
from mcp_proxy.load.campaign import Order, _Campaign
from mcp_proxy.load.stub_http import Exchange, Request
from tests.unit.loadrig import FACTS, only, running_stub


def test_endpoints_that_serve_the_same_stay_as_they_are() -> None:
    facts = [FACTS, only(is_proxy=True, notes=["a note"])]
    assert alike(facts) == (facts, [])


def test_only_what_all_serve_is_asked_of_any() -> None:
    one, two = only(get_stream=False, get_ids=False), only(tool=Tool("time"), modern=False, listen=False)
    (first, second), left_out = alike([one, two])
    assert first == second
    assert first == msgspec.structs.replace(
        FACTS, get_stream=False, get_ids=False, modern=False, listen=False, tool=Tool("count", {}, 4)
    )
    assert left_out == [
        *("modern users", "stream users", "GET streams", "ids of GET streams", "subscriptions/listen"),
        *("the tool echo", "the tool time"),
    ]


def test_the_same_tool_with_another_number_of_events_has_no_certain_number() -> None:
    (first, second), left_out = alike([FACTS, only(stream_tool=Tool("count", {}, 5))])
    assert first.stream_tool == second.stream_tool == Tool("count")
    assert left_out == []


def test_no_abuse_is_committed_against_one_only() -> None:
    (first, second), left_out = alike([only(abuses=["a", "b"]), only(abuses=["b"])])
    assert first.abuses == second.abuses == ["b"]
    assert left_out == ["the abuse a"]


def test_endpoints_that_differ_are_compared_by_what_both_serve() -> None:
    def without_streams(request: Request, exchange: Exchange) -> bool:
        if request.method == "GET" or b'"subscriptions/listen"' in request.body:
            exchange.answer(405)
            return True
        return False

    said: list[str] = []
    with running_stub() as one, running_stub() as other, contextlib.ExitStack() as stack:
        other.before = without_streams
        order = Order(one.target, compare=[("direct", one.target), ("other", other.target)])
        campaign = _Campaign(order, lambda each: said.append(each.line or ""), stack)
        campaign.prepare()
        direct, plan = campaign._plans["direct"], campaign._plans["other"]
    assert direct.mix == plan.mix
    assert list(plan.mix) == ["session", "modern", "reconnect", "abuse"]
    assert not direct.facts.get_stream
    (left_out,) = [line for line in said if line.startswith("not served alike by all")]
    assert "stream users, GET streams" in left_out
