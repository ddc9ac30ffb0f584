"""Users whose connection breaks, against a server that resumes rightly and wrongly; and the judgement itself.

Rules of this file: those of ``test_load_users.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from mcp_proxy.load import Facts, Tool
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.sequence import answer_fault, fault, is_numbered
from mcp_proxy.load.sse import Event
from mcp_proxy.load.stub import KEPT_ANSWERS
from mcp_proxy.load.stub_http import Exchange, Request
from mcp_proxy.load.users.reconnect import BROKEN_CALL, RESUMED, RESUMED_CALL, ReconnectUser
from mcp_proxy.load.users.session import SessionUser
from tests.unit.loadrig import RunningStub, failures, only, plan_for, running_stub


@pytest.fixture
def server() -> Iterator[RunningStub]:
    with running_stub() as running:
        yield running


# --- reconnecting -----------------------------------------------------------------------------


def test_who_breaks_off_gets_what_it_missed(server: RunningStub) -> None:
    user = ReconnectUser(plan_for(server.target), Ledger())
    for _ in range(12):
        user.step()
    user.end()
    rows = user.ledger.operations
    assert rows[f"reconnect {BROKEN_CALL}"].answers > 0
    assert rows[f"reconnect {RESUMED_CALL}"].answers > 0
    assert rows[f"reconnect {RESUMED}"].answers > 0
    assert failures(user) == []
    assert any("last-event-id" in request.headers for request in server.requests)


@pytest.mark.parametrize(
    "facts", [only(get_ids=False), only(answer_ids=False)], ids=["answers", "GET streams"]
)
@pytest.mark.parametrize(
    ("shift", "reason"), [(-1, "an event came twice"), (1, "missed")], ids=["one too many", "one too few"]
)
def test_a_server_that_resumes_at_the_wrong_place_is_found_out(
    server: RunningStub, facts: Facts, shift: int, reason: str
) -> None:
    def wrong(request: Request, exchange: Exchange) -> bool:
        given = request.headers.get("last-event-id")
        if given is not None:
            key, _, number = given.partition("/")
            request.headers["last-event-id"] = f"{key}/{max(0, int(number) + shift)}"
        return False

    server.before = wrong
    user = ReconnectUser(plan_for(server.target, facts, timeout_s=1.0), Ledger())
    for _ in range(4):
        user.step()
    user.end()
    assert any(reason in found for found in failures(user)), failures(user)


def test_a_server_that_cannot_resume_any_more_is_found_out(server: RunningStub) -> None:
    user = ReconnectUser(plan_for(server.target, only(get_ids=False)), Ledger())
    user.step()
    server.before = lambda request, exchange: request.method == "GET" and bool(_refuse(exchange))
    user.step()
    user.end()
    assert failures(user) == [f"reconnect {RESUMED_CALL}: HTTP 400"]


def _refuse(exchange: Exchange) -> bool:
    exchange.answer(400)
    return True


def test_who_has_the_response_already_does_not_wait_for_it(server: RunningStub) -> None:
    """A server without a priming event: the first event with an id may be the response."""

    def answer(request: Request, exchange: Exchange) -> bool:
        if request.method == "GET":
            exchange.begin_stream()
            return True
        if b'"tools/call"' not in request.body:
            return False
        id = msgspec.json.decode(request.body)["id"]
        exchange.begin_stream()
        exchange.send(b'id: 1\ndata: {"jsonrpc":"2.0","id":%d,"result":{}}\n\n' % id)
        exchange.end_stream()
        return True

    server.before = answer
    facts = only(get_ids=False, stream_tool=Tool("count"))
    user = ReconnectUser(plan_for(server.target, facts, timeout_s=1.0), Ledger())
    user.step()
    user.end()
    assert "GET" not in server.methods()
    assert failures(user) == []


def numbered(number: int, id: str | None = None) -> Event:
    message = {"method": "notifications/progress", "params": {"progress": number}}
    return Event(msgspec.json.encode(message).decode(), id or f"e{number}")


RESPONSE = Event('{"jsonrpc":"2.0","id":5,"result":{}}', "r")


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ([1, 2], [3, 4], None),
        ([], [], None),
        ([1, 2], [4], "events were missed"),
        ([1, 2], [3, 2], "an event came twice"),
        ([1, 2], [1], "an event came twice"),
    ],
)
def test_a_resumed_stream_continues_where_it_broke(
    before: list[int], after: list[int], found: str | None
) -> None:
    assert fault([*map(numbered, before)], [*map(numbered, after)]) == found


def test_numbers_show_what_ids_hide() -> None:
    assert fault([numbered(1, "a")], [numbered(1, "b")]) == "an event came twice"
    assert fault([numbered(2, "a")], [numbered(1, "b")]) == "events out of order"


@pytest.mark.parametrize(
    ("after", "expected", "found"),
    [
        ([numbered(2), RESPONSE], 2, None),
        ([numbered(2), RESPONSE], None, None),
        ([numbered(9), RESPONSE], None, None),
        ([numbered(2)], 2, "the response was missed"),
        ([RESPONSE], 2, "events were missed"),
        ([numbered(2), RESPONSE, RESPONSE._replace(id="r2")], 2, "the response came twice"),
        ([numbered(1), RESPONSE], None, "an event came twice"),
        ([numbered(2), Event('{"jsonrpc":"2.0","id":5,"error":{"code":-1}}', "r")], 2, "JSON-RPC error -1"),
    ],
)
def test_a_resumed_answer_has_one_response_and_all_before_it(
    after: list[Event], expected: int | None, found: str | None
) -> None:
    assert answer_fault([numbered(1)], after, 5, expected) == found


def test_only_what_counts_from_one_is_numbered() -> None:
    assert is_numbered([numbered(1), numbered(2), RESPONSE])
    assert not is_numbered([numbered(10), numbered(20), RESPONSE])
    assert not is_numbered([RESPONSE])


def test_the_bundled_server_keeps_the_last_answers_of_a_session_only(server: RunningStub) -> None:
    user = SessionUser(plan_for(server.target, only(tool=Tool("count"), get_stream=False)), Ledger())
    for _ in range(2 * KEPT_ANSWERS):
        user.step()
    (session,) = server.stub.sessions.values()
    assert len(session.streams) <= KEPT_ANSWERS + 1
    user.end()
