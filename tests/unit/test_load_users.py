"""The users, against the bundled server: what they send, what they notice.

Rules of this file: users are run by hand, turn by turn, without locust. That a user notices what is wrong is
shown by a server that does it wrong: one that sends an event twice, misses one, forgets a session, accepts
what it should refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from mcp_proxy.load import Facts
from mcp_proxy.load.abuse import SECOND_STREAM, TABLE
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.stream import Failed
from mcp_proxy.load.stub_http import Exchange, Request
from mcp_proxy.load.users.abuse import AbuseUser
from mcp_proxy.load.users.listener import Listener, get_stream
from mcp_proxy.load.users.modern import ModernUser
from mcp_proxy.load.users.session import CALLS_PER_SESSION, SessionUser
from mcp_proxy.load.users.stream import StreamUser
from tests.tools import PATIENCE_S
from tests.unit.loadrig import FACTS, RunningStub, failures, only, plan_for, running_stub, until


@pytest.fixture
def server() -> Iterator[RunningStub]:
    with running_stub() as running:
        yield running


# --- sessions ---------------------------------------------------------------------------------


def test_a_session_is_opened_used_and_ended(server: RunningStub) -> None:
    user = SessionUser(plan_for(server.target, only(get_stream=False)), Ledger())
    for _ in range(3):
        user.step()
    user.end()
    methods = server.methods()
    assert methods[:3] == ["initialize", "notifications/initialized", "tools/list"]
    assert methods[-1] == "DELETE"
    assert len(methods) == 3 + 3 + 1
    assert server.stub.sessions == {}
    sessions = {request.headers.get("mcp-session-id") for request in server.requests[1:]}
    assert len(sessions) == 1
    assert None not in sessions
    assert {request.headers.get("mcp-protocol-version") for request in server.requests[1:]} == {"2025-11-25"}
    assert failures(user) == []


def test_a_session_has_so_many_calls_and_then_comes_the_next(server: RunningStub) -> None:
    user = SessionUser(plan_for(server.target, only(get_stream=False)), Ledger())
    for _ in range(CALLS_PER_SESSION + 1):
        user.step()
    user.end()
    assert server.methods().count("initialize") == 2
    assert server.methods().count("DELETE") == 2


def test_a_stream_is_read_beside_the_calls(server: RunningStub) -> None:
    user = SessionUser(plan_for(server.target), Ledger())
    row = user.ledger.operation("session", "GET stream", is_post=False, is_call=False)
    user.step()
    until(lambda: sum(row.gaps.values()) >= 2)
    user.end()
    assert row.answers == 1
    assert sum(row.first.values()) == 1
    assert failures(user) == []
    assert server.stub.sessions == {}


def test_a_session_is_ended_once_whatever_becomes_of_it(server: RunningStub) -> None:
    """Whoever is stopped in the middle of it would else be told that it is unknown."""
    user = SessionUser(plan_for(server.target, only(get_stream=False), timeout_s=0.2), Ledger())
    user.step()
    server.before = lambda request, exchange: request.method == "DELETE"
    with pytest.raises(Failed):
        user.finish()
    user.end()
    assert server.methods().count("DELETE") == 1


def test_who_is_told_that_his_session_is_gone_begins_another(server: RunningStub) -> None:
    user = SessionUser(plan_for(server.target, only(stream_tool=None)), Ledger())
    user.step()
    server.stub.sessions.clear()
    user.step()
    assert any("HTTP 404" in reason for reason in failures(user))
    user.step()
    user.end()
    assert server.methods().count("initialize") == 2


def test_the_same_seed_makes_the_same_choices(server: RunningStub) -> None:
    courses = []
    for seed in (1, 1, 2):
        server.requests.clear()
        user = SessionUser(plan_for(server.target, only(get_stream=False), seed=seed), Ledger(), 7)
        for _ in range(20):
            user.step()
        user.end()
        courses.append([request.body for request in server.requests])
    assert courses[0] == courses[1]
    assert courses[0] != courses[2]


@pytest.mark.parametrize(("lists", "method"), [(True, "tools/list"), (False, "ping")])
def test_a_server_without_tools_is_asked_for_what_it_has(
    server: RunningStub, lists: bool, method: str
) -> None:
    facts = only(tool=None, stream_tool=None, lists_tools=lists, get_stream=False)
    user = SessionUser(plan_for(server.target, facts), Ledger())
    user.step()
    user.end()
    assert server.methods() == ["initialize", "notifications/initialized", method, method, "DELETE"]


def test_a_modern_user_has_no_session_and_says_everything_twice(server: RunningStub) -> None:
    user = ModernUser(plan_for(server.target), Ledger())
    for _ in range(20):
        user.step()
    user.end()
    assert server.methods()[0] == "server/discover"
    assert {"tools/call", "tools/list"} <= set(server.methods())
    for request in server.requests:
        body = msgspec.json.decode(request.body)
        assert request.headers["mcp-method"] == body["method"]
        assert request.headers.get("mcp-name") == body["params"].get("name")
        assert request.headers["mcp-protocol-version"] == "2026-07-28"
        assert body["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
        assert "mcp-session-id" not in request.headers
    names = {row.name for row in user.ledger.operations.values() if row.answers}
    assert {"tools/call (JSON)", "tools/call (SSE)"} <= names
    assert failures(user) == []


# --- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "method"),
    [(FACTS, "GET"), (only(get_stream=False), "subscriptions/listen")],
    ids=["GET", "listen"],
)
def test_a_holder_holds_its_stream_and_lets_it_go(server: RunningStub, facts: Facts, method: str) -> None:
    user = StreamUser(plan_for(server.target, facts, hold_s=0.2), Ledger())
    user.step()
    user.end()
    assert server.methods().count(method) == 1
    assert failures(user) == []
    first = [row.first for row in user.ledger.operations.values() if row.first]
    assert len(first) == 1


def test_a_holder_can_be_stopped_while_it_holds(server: RunningStub) -> None:
    user = StreamUser(plan_for(server.target, hold_s=3600.0), Ledger())
    holding = threading.Thread(target=user.step)
    holding.start()
    until(lambda: "GET" in server.methods())
    user.stop()
    holding.join(PATIENCE_S)
    assert not holding.is_alive()
    user.end()
    assert server.stub.sessions == {}
    assert failures(user) == []


def test_a_stream_that_ends_is_opened_again_with_the_last_id(server: RunningStub) -> None:
    """As a proxy that restarts does it: it ends streams properly."""
    ledger = Ledger()
    user = SessionUser(plan_for(server.target, only(get_stream=False)), ledger)
    user.step()
    listener = Listener(user.plan, ledger, "stream", get_stream(user.fields))
    listener._retry_s = 0.01
    reading = threading.Thread(target=listener.run)
    reading.start()
    (session,) = server.stub.sessions.values()
    row = ledger.operation("stream", "GET stream", is_post=False)
    until(lambda: sum(row.first.values()) == 1)
    server.stub_call(session.streams["get"].let_go)
    until(lambda: sum(row.first.values()) == 2)
    listener.stop()
    reading.join(PATIENCE_S)
    user.end()
    assert row.ends == 1
    again = [request for request in server.requests if "last-event-id" in request.headers]
    assert len(again) == 1
    assert failures(user) == []


def test_a_stream_that_is_cut_is_a_failure(server: RunningStub) -> None:
    ledger = Ledger()
    user = SessionUser(plan_for(server.target, only(get_stream=False)), ledger)
    user.step()
    listener = Listener(user.plan, ledger, "stream", get_stream(user.fields))
    reading = threading.Thread(target=listener.run)
    reading.start()
    (session,) = server.stub.sessions.values()
    until(lambda: session.streams["get"].reader is not None)
    reader = session.streams["get"].reader
    assert reader is not None
    server.stub_call(reader.cut)
    until(lambda: failures(user) != [])
    listener.stop()
    reading.join(PATIENCE_S)
    user.end()
    (reason,) = failures(user)
    assert reason.startswith("stream GET stream: stream cut: ")


@pytest.mark.parametrize("id", ["ä/1", "\N{SNOWMAN}", "a b"])
def test_an_event_id_is_given_back_byte_for_byte(server: RunningStub, id: str) -> None:
    given: list[str] = []

    def handle(request: Request, exchange: Exchange) -> bool:
        if request.method != "GET":
            return False
        given.append(request.headers.get("last-event-id", ""))
        exchange.begin_stream()
        exchange.send(f"id: {id}\nretry: 1\ndata: x\n\n".encode())
        exchange.end_stream()
        return True

    server.before = handle
    user = SessionUser(plan_for(server.target, only(get_stream=False)), Ledger())
    user.step()
    listener = Listener(user.plan, user.ledger, "stream", get_stream(user.fields))
    reading = threading.Thread(target=listener.run)
    reading.start()
    until(lambda: len(given) >= 2)
    listener.stop()
    reading.join(PATIENCE_S)
    user.end()
    assert given[1].encode("latin-1").decode() == id
    assert failures(user) == []


@pytest.mark.parametrize("version", ["2025-11-25\r\nX-Evil: 1", "ä", 7, None])
def test_a_version_that_cannot_be_sent_is_not_sent(server: RunningStub, version: object) -> None:
    def handle(request: Request, exchange: Exchange) -> bool:
        if b'"initialize"' not in request.body:
            return False
        message = {"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": version}}
        exchange.answer(200, msgspec.json.encode(message))
        return True

    server.before = handle
    user = SessionUser(plan_for(server.target, only(get_stream=False, sessions=False)), Ledger())
    user.step()
    user.end()
    assert all("x-evil" not in request.headers for request in server.requests)
    assert all("mcp-protocol-version" not in request.headers for request in server.requests)


class Mistaken(SessionUser):
    def turn(self) -> None:
        raise ZeroDivisionError("oh")


def test_a_mistake_of_the_load_test_itself_is_no_silence(server: RunningStub) -> None:
    user = Mistaken(plan_for(server.target, only(get_stream=False)), Ledger())
    user.step()
    user.end()
    assert failures(user) == ["session the load test itself: a mistake: ZeroDivisionError"]


# --- abuse ------------------------------------------------------------------------------------


def test_every_abuse_is_committed_in_turn_and_refused_by_the_bundled_server(server: RunningStub) -> None:
    names = [*TABLE, SECOND_STREAM]
    user = AbuseUser(plan_for(server.target, only(abuses=names)), Ledger())
    for _ in names:
        user.step()
    user.end()
    assert failures(user) == []
    assert all(user.ledger.operations[f"abuse {name}"].answers == 1 for name in names)


def abusing(server: RunningStub, name: str = "bad JSON", **facts: object) -> AbuseUser:
    user = AbuseUser(plan_for(server.target, only(abuses=[name], **facts), timeout_s=0.5), Ledger())
    user.step()
    user.end()
    return user


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda exchange: exchange.answer(200, b"{}"), "expected a refusal, got 200"),
        (lambda exchange: exchange.answer(500), "expected a refusal, got 500"),
        (lambda exchange: exchange.begin_stream(), "expected a refusal, got 200 and a stream"),
        (lambda exchange: exchange.cut(), "no refusal: connection closed before the answer"),
        (lambda exchange: None, "no answer in 0.5 s"),
        (
            lambda exchange: exchange.answer(400, b"{}", "text/plain", "content-length: 9"),
            "no refusal: not HTTP",
        ),
    ],
    ids=["accepted", "500", "stream", "reset", "silence", "no HTTP"],
)
def test_what_is_no_refusal_is_a_failure(
    server: RunningStub, answer: Callable[[Exchange], object], reason: str
) -> None:
    server.before = lambda request, exchange: answer(exchange) is None
    assert failures(abusing(server)) == [f"abuse bad JSON: {reason}"]


def test_the_proxys_refusal_has_to_be_the_right_one(server: RunningStub) -> None:
    def wrong(request: Request, exchange: Exchange) -> bool:
        exchange.answer(400, b"{}", "application/json", "mcp-proxy-reason: invalid_request")
        return True

    server.before = wrong
    found = failures(abusing(server, is_proxy=True))
    assert found == ["abuse bad JSON: expected 400 parse_error, got 400 invalid_request"]


def test_an_abuser_that_is_told_to_wait_waits(server: RunningStub) -> None:
    def busy(request: Request, exchange: Exchange) -> bool:
        exchange.answer(503, b"", "", "retry-after: 0")
        return True

    server.before = busy
    user = abusing(server)
    assert failures(user) == []
    assert user.ledger.waits == 1
