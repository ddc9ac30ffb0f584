"""What may be in progress at once: limits of the process, of clients, of principals."""

from __future__ import annotations

import pytest

from mcp_proxy.envelope import Envelope, parse
from mcp_proxy.headers import read_request
from mcp_proxy.quotas import UNBOUNDED, Bounds, Quotas, is_exempt, share_of
from mcp_proxy.replies import render
from mcp_proxy.routing import Plan, plan_delete, plan_get, plan_post
from mcp_proxy.wire import Header, Rejection

SESSION = (b"mcp-session-id", b"1f2e")
META = b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}'


class Asking:
    """One request, as the gateway knows it when it asks."""

    def __init__(self, plan: Plan | Rejection, envelope: Envelope | None = None) -> None:
        assert isinstance(plan, Plan)
        self.plan, self.envelope = plan, envelope

    def enter(self, quotas: Quotas, client: str = "192.0.2.1", principal: str = "") -> Rejection | None:
        return quotas.enter(self.plan, self.envelope, client, principal)

    def leave(self, quotas: Quotas, client: str = "192.0.2.1", principal: str = "") -> None:
        quotas.leave(self.plan, self.envelope, client, principal)


def posted(body: bytes, *fields: Header) -> Asking:
    envelope = parse(body)
    return Asking(plan_post(read_request(list(fields)), envelope), envelope)


def modern(method: bytes) -> Asking:
    body = b'{"jsonrpc":"2.0","id":1,"method":"%b","params":{%b}}' % (method, META)
    return posted(body, (b"mcp-protocol-version", b"2026-07-28"), (b"mcp-method", method))


CALL = posted(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add"}}', SESSION)
INITIALIZE = posted(b'{"jsonrpc":"2.0","id":1,"method":"initialize"}')
BATCH = posted(b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"result":{}}]', SESSION)
STREAM = Asking(plan_get(read_request([SESSION])))
LISTEN = modern(b"subscriptions/listen")
RESPONSE = posted(b'{"jsonrpc":"2.0","id":7,"result":{}}', SESSION)
CANCELLED = posted(b'{"jsonrpc":"2.0","method":"notifications/cancelled"}', SESSION)
RESPONSES = posted(b'[{"jsonrpc":"2.0","id":7,"result":{}},{"jsonrpc":"2.0","id":8,"result":{}}]', SESSION)
DELETE = Asking(plan_delete(read_request([SESSION])))
DISCOVER = modern(b"server/discover")

EXEMPT = {
    "an answer to the server": RESPONSE,
    "a batch of such answers": RESPONSES,
    "a notification": CANCELLED,
    "DELETE": DELETE,
    "server/discover": DISCOVER,
}
ORDINARY = {"tools/call": CALL, "initialize": INITIALIZE, "a batch with a request": BATCH}
STREAMS = {"GET": STREAM, "subscriptions/listen": LISTEN}


def quotas(
    streams: int = 100,
    requests: int = 100,
    per_client: Bounds = UNBOUNDED,
    per_principal: Bounds = UNBOUNDED,
) -> Quotas:
    return Quotas(streams=streams, requests=requests, per_client=per_client, per_principal=per_principal)


def said(rejection: Rejection | None) -> tuple[int, str] | None:
    """Status and reason that the client gets; checks that it is told when to come back."""
    if rejection is None:
        return None
    status, headers, _ = render(rejection)
    assert (b"retry-after", b"1") in headers
    return status, rejection.reason


OVERLOADED = (503, "overloaded")
TOO_MANY = (429, "too_many_requests")


# -- the process -------------------------------------------------------------------------------


@pytest.mark.parametrize("asking", ORDINARY.values(), ids=ORDINARY.keys())
def test_the_request_above_the_limit_is_refused_until_one_leaves(asking: Asking) -> None:
    held = quotas(requests=2)
    assert [said(asking.enter(held)) for _ in range(4)] == [None, None, OVERLOADED, OVERLOADED]
    asking.leave(held)
    assert [said(asking.enter(held)) for _ in range(2)] == [None, OVERLOADED]
    assert (held.requests, held.streams) == (2, 0)


@pytest.mark.parametrize("asking", STREAMS.values(), ids=STREAMS.keys())
def test_the_stream_above_the_limit_is_refused_and_requests_go_on(asking: Asking) -> None:
    held = quotas(streams=2, requests=1)
    assert [said(asking.enter(held)) for _ in range(3)] == [None, None, OVERLOADED]
    assert [said(CALL.enter(held)) for _ in range(2)] == [None, OVERLOADED]
    asking.leave(held)
    assert said(asking.enter(held)) is None
    assert (held.requests, held.streams) == (1, 2)


def test_a_refusal_names_the_limit_and_nothing_of_the_client() -> None:
    held = quotas(0, 0)
    assert [refusal.detail for refusal in (STREAM.enter(held), CALL.enter(held)) if refusal] == [
        "limits.streams is reached",
        "limits.requests is reached",
    ]


# -- one client, one principal -----------------------------------------------------------------


@pytest.mark.parametrize("who", ["client", "principal"])
def test_one_has_its_share_and_another_has_one_of_its_own(who: str) -> None:
    held = quotas(**{f"per_{who}": Bounds(requests=2)})  # type: ignore[arg-type]
    assert [said(CALL.enter(held, **{who: "192.0.2.1"})) for _ in range(3)] == [None, None, TOO_MANY]
    assert said(CALL.enter(held, **{who: "192.0.2.2"})) is None
    assert said(STREAM.enter(held, **{who: "192.0.2.1"})) is None
    CALL.leave(held, **{who: "192.0.2.1"})
    assert said(CALL.enter(held, **{who: "192.0.2.1"})) is None


@pytest.mark.parametrize("who", ["client", "principal"])
def test_streams_and_requests_of_one_are_counted_apart(who: str) -> None:
    held = quotas(**{f"per_{who}": Bounds(streams=1, requests=1)})  # type: ignore[arg-type]
    assert [said(STREAM.enter(held, **{who: "a"})) for _ in range(2)] == [None, TOO_MANY]
    assert [said(CALL.enter(held, **{who: "a"})) for _ in range(2)] == [None, TOO_MANY]
    STREAM.leave(held, **{who: "a"})
    assert [said(ask.enter(held, **{who: "a"})) for ask in (CALL, STREAM)] == [TOO_MANY, None]


def test_who_is_refused_by_one_limit_uses_up_none_of_the_others() -> None:
    held = quotas(per_client=Bounds(requests=2), per_principal=Bounds(requests=1))
    assert said(CALL.enter(held, "192.0.2.1", "alice")) is None
    assert [said(CALL.enter(held, "192.0.2.1", "alice")) for _ in range(3)] == [TOO_MANY] * 3
    assert said(CALL.enter(held, "192.0.2.1", "bob")) is None
    assert held.requests == 2


def test_nobody_in_particular_has_no_share() -> None:
    held = quotas(per_client=Bounds(1, 1), per_principal=Bounds(1, 1))
    askings = [CALL, STREAM] * 3
    assert [said(asking.enter(held, "", "")) for asking in askings] == [None] * 6
    for asking in askings:
        asking.leave(held, "", "")
    assert repr(held) == "<Quotas streams=0 requests=0 clients=0 principals=0 none>"


def test_nothing_is_remembered_of_who_has_nothing_in_progress() -> None:
    held = quotas(10_000, 10_000, Bounds(2, 2), Bounds(2, 2))
    names = [f"192.0.{number >> 8}.{number & 255}" for number in range(1000)]
    for name in names:
        assert [said(asking.enter(held, name, name)) for asking in (CALL, STREAM)] == [None, None]
    assert repr(held) == "<Quotas streams=1000 requests=1000 clients=2000 principals=2000 none>"
    for name in names:
        for asking in (CALL, STREAM):
            asking.leave(held, name, name)
    assert repr(held) == "<Quotas streams=0 requests=0 clients=0 principals=0 none>"


@pytest.mark.parametrize(
    ("address", "share"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::1", "2001:db8:0:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("not:an address", "not:an address"),
    ],
)
def test_an_ipv6_client_is_its_network(address: str, share: str) -> None:
    assert share_of(address) == share


# -- what is never refused ---------------------------------------------------------------------


@pytest.mark.parametrize("asking", EXEMPT.values(), ids=EXEMPT.keys())
def test_what_frees_something_comes_through_whatever_is_in_progress(asking: Asking) -> None:
    held = quotas(1, 1, Bounds(1, 1), Bounds(1, 1))
    CALL.enter(held, "192.0.2.1", "alice")
    assert said(CALL.enter(held, "192.0.2.1", "alice")) == OVERLOADED
    assert [said(asking.enter(held, "192.0.2.1", "alice")) for _ in range(3)] == [None] * 3
    for _ in range(3):
        asking.leave(held, "192.0.2.1", "alice")
    assert held.requests == 1


@pytest.mark.parametrize("asking", EXEMPT.values(), ids=EXEMPT.keys())
def test_what_frees_something_takes_no_share_of_its_client(asking: Asking) -> None:
    held = quotas(per_client=Bounds(requests=1), per_principal=Bounds(requests=1))
    assert said(asking.enter(held, "192.0.2.1", "alice")) is None
    assert said(CALL.enter(held, "192.0.2.1", "alice")) is None
    asking.leave(held, "192.0.2.1", "alice")
    assert said(CALL.enter(held, "192.0.2.1", "alice")) == TOO_MANY


@pytest.mark.parametrize("asking", (ORDINARY | STREAMS).values(), ids=(ORDINARY | STREAMS).keys())
def test_whatever_asks_for_work_is_not_exempt(asking: Asking) -> None:
    assert not is_exempt(asking.plan, asking.envelope)


# -- other limits while it runs ----------------------------------------------------------------


def test_lower_limits_hold_for_what_comes_and_harm_nothing_that_is_there() -> None:
    held = quotas(streams=3, requests=3)
    for asking in [CALL, STREAM] * 3:
        asking.enter(held)
    held.limit(1, 1, UNBOUNDED, UNBOUNDED, None)
    for asking in (CALL, STREAM):
        for _ in range(2):
            assert said(asking.enter(held)) == OVERLOADED
            asking.leave(held)
        assert said(asking.enter(held)) == OVERLOADED
        asking.leave(held)
        assert said(asking.enter(held)) is None


def test_shares_may_begin_and_end_while_requests_are_in_progress() -> None:
    held = quotas()
    CALL.enter(held)
    held.limit(9, 9, Bounds(1, 1), UNBOUNDED, None)
    assert [said(CALL.enter(held)) for _ in range(2)] == [None, TOO_MANY]
    held.limit(9, 9, UNBOUNDED, UNBOUNDED, None)
    assert said(CALL.enter(held)) is None
    for _ in range(3):
        CALL.leave(held)
    held.limit(9, 9, Bounds(1, 1), UNBOUNDED, None)
    assert [said(CALL.enter(held)) for _ in range(2)] == [None, TOO_MANY]
    assert held.requests == 1
