"""The first phase: which heads come in, and what the others are told."""

from __future__ import annotations

import ipaddress

import pytest

from mcp_proxy.admission import Admitted, Porter, preflight
from mcp_proxy.forwarding import Forwarder
from mcp_proxy.headers import read_request
from mcp_proxy.policy.origin import OriginGuard
from mcp_proxy.replies import TABLE
from mcp_proxy.sessions import SessionKey
from mcp_proxy.wire import Fields, Header, Rejection, Request

FORWARDER = Forwarder([ipaddress.ip_network("10.0.0.0/8")])
PORTER = Porter(
    {b"/mcp": "main", b"/weather/mcp": "weather", b"/": "root"},
    OriginGuard("127.0.0.1", "https://mcp.example.com"),
    FORWARDER,
)

HOST = (b"host", b"localhost:8080")
JSON = (b"content-type", b"application/json")


def arrive(
    *lines: Header, method: bytes = b"POST", target: bytes = b"/mcp", peer: str = "127.0.0.1"
) -> Request:
    return Request(method, target, list(lines), peer, "http")


def admit(*lines: Header, method: bytes = b"POST", target: bytes = b"/mcp") -> Admitted | Rejection:
    return PORTER.admit(arrive(*lines, method=method, target=target))


def refused(outcome: Admitted | Rejection) -> tuple[str, int]:
    assert isinstance(outcome, Rejection)
    return outcome.reason, TABLE[outcome.reason].status


# --- what comes in --------------------------------------------------------------------------------


def test_a_good_head_is_admitted_with_all_that_was_learnt() -> None:
    request = arrive(
        HOST, JSON, (b"x-forwarded-for", b"198.51.100.1"), target=b"/weather/mcp?a=%2f&b", peer="10.0.0.1"
    )

    outcome = PORTER.admit(request)

    assert isinstance(outcome, Admitted)
    assert outcome.request is request
    assert outcome.head.host == b"localhost:8080"
    assert (outcome.route, outcome.pool, outcome.query) == ("/weather/mcp", "weather", b"?a=%2f&b")
    assert outcome.client == "198.51.100.1"
    assert outcome.key is None
    assert outcome.forward is None


@pytest.mark.parametrize(
    ("target", "query"),
    [(b"/mcp", b""), (b"/mcp?", b"?"), (b"/mcp??x", b"??x"), (b"/mcp?/../admin", b"?/../admin")],
)
def test_the_query_is_kept_with_its_question_mark(target: bytes, query: bytes) -> None:
    outcome = admit(HOST, JSON, target=target)

    assert isinstance(outcome, Admitted)
    assert outcome.query == query


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"OPTIONS"])
def test_methods_without_a_body_need_no_media_type(method: bytes) -> None:
    assert isinstance(admit(HOST, method=method), Admitted)
    assert isinstance(admit(HOST, (b"content-type", b"text/plain"), method=method), Admitted)


@pytest.mark.parametrize("origin", [b"http://localhost:5173", b"https://mcp.example.com"])
def test_pages_that_may_are_admitted(origin: bytes) -> None:
    assert isinstance(admit(HOST, JSON, (b"origin", origin)), Admitted)


@pytest.mark.parametrize("session_id", [b"s1", b"!", b"~" * 512])
def test_a_session_is_known_by_its_route_and_id(session_id: bytes) -> None:
    outcome = admit(HOST, JSON, (b"mcp-session-id", session_id), target=b"/weather/mcp")

    assert isinstance(outcome, Admitted)
    assert outcome.key == SessionKey("/weather/mcp", session_id)


@pytest.mark.parametrize("session_id", [b"", b"a b", b"a\x7f", b"a\tb", b"a" * 513])
def test_a_session_id_that_cannot_be_one_names_no_session(session_id: bytes) -> None:
    # not a bad request: it must look like any other unknown session
    outcome = admit(HOST, JSON, (b"mcp-session-id", session_id))

    assert isinstance(outcome, Admitted)
    assert outcome.key is None
    assert outcome.head.session_id == session_id


# --- path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        b"/MCP",
        b"/mcp/",
        b"//mcp",
        b"/mcp//",
        b"/./mcp",
        b"/x/../mcp",
        b"/%6dcp",
        b"/mcp%3Fa",
        b"/mcp%2f",
        b"/mcp;a=b",
        b"/mcp#f",
        b"/mcp\\",
        b"/mcp\x00",
        b"/weather",
        b"/weather/mcp/x",
        b"/mcp/../admin",
        b"*",
        b"",
        b"?",
        b"http://localhost/mcp",
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"GET", b"BREW"])
def test_routes_are_matched_byte_for_byte(target: bytes, method: bytes) -> None:
    assert refused(admit(HOST, JSON, target=target, method=method)) == ("not_found", 404)


# --- head -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        [HOST, HOST],
        [HOST, (b"mcp-session-id", b"a"), (b"mcp-session-id", b"b")],
        [HOST, (b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")],
        [HOST, (b"content-type", b"text/plain")],
        [HOST, (b"origin", b"http://localhost"), (b"origin", b"http://evil.com")],
        [HOST, (b"connection", b"authorization")],
        [HOST, (b"mcp-param-a", b"\xff")],
        [(b"host", b"localhost:evil")],
        [],
    ],
)
def test_a_head_that_must_not_be_forwarded_is_a_bad_request(lines: list[Header]) -> None:
    outcome = admit(JSON, *lines)

    assert refused(outcome) == ("bad_request", 400)
    assert isinstance(outcome, Rejection)
    assert outcome.detail


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE", b"OPTIONS", b"BREW"])
def test_a_rebound_host_is_misdirected_whatever_it_asks(method: bytes) -> None:
    assert refused(admit((b"host", b"evil.com"), JSON, method=method)) == ("misdirected", 421)


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE", b"OPTIONS", b"BREW"])
@pytest.mark.parametrize("origin", [b"null", b"", b"http://evil.com", b"http://localhost:evil"])
def test_a_foreign_page_is_forbidden_whatever_it_asks(method: bytes, origin: bytes) -> None:
    assert refused(admit(HOST, JSON, (b"origin", origin), method=method)) == ("forbidden_origin", 403)


def test_a_request_that_was_here_before_is_a_loop() -> None:
    via = (b"via", b"1.1 other, 1.1 " + FORWARDER.pseudonym)

    assert refused(admit(HOST, JSON, via)) == ("loop_detected", 508)
    assert isinstance(admit(HOST, JSON, (b"via", b"1.1 other")), Admitted)


# --- method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [b"HEAD", b"PUT", b"PATCH", b"TRACE", b"CONNECT", b"QUERY", b"post", b"BREW"]
)
def test_row_29_other_methods_are_not_allowed_and_learn_which_are(method: bytes) -> None:
    outcome = admit(HOST, JSON, method=method)

    assert refused(outcome) == ("method_not_allowed", 405)
    assert isinstance(outcome, Rejection)
    allowed = dict(outcome.extra)[b"allow"].split(b", ")
    assert set(allowed) == {b"GET", b"POST", b"DELETE", b"OPTIONS"}


# --- media type -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json;charset=utf-8",
        b"application/json ; charset=UTF-8",
        b'application/json; charset="utf-8"',
        b"application/json; profile=x",
        b"application/json;",
    ],
)
def test_json_is_admitted_as_clients_write_it(content_type: bytes) -> None:
    assert isinstance(admit(HOST, (b"content-type", content_type)), Admitted)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        b"",
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=application/json",
        b"application/jsonx",
        b"application/json-rpc",
        b"application/json, text/plain",
        b"text/plain; application/json",
        b"application/ json",
        b"json",
    ],
)
def test_row_30_nothing_but_json_is_admitted(content_type: bytes | None) -> None:
    # what a form or a script may send without a preflight must not get in
    lines = [] if content_type is None else [(b"content-type", content_type)]

    assert refused(admit(HOST, *lines)) == ("unsupported_media_type", 415)


@pytest.mark.parametrize(
    "parameter",
    [
        b"charset=utf-7",
        b"charset=utf-16",
        b"charset=latin1",
        b"charset=utf-8; charset=utf-7",
        b'a="; charset=utf-7',
    ],
)
def test_a_body_in_another_charset_is_not_admitted(parameter: bytes) -> None:
    # backends that believe the parameter read other JSON than we do
    content_type = (b"content-type", b"application/json; " + parameter)

    assert refused(admit(HOST, content_type)) == ("unsupported_media_type", 415)


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP", b"identity, gzip", b"br", b"deflate", b""])
def test_a_body_that_cannot_be_read_is_not_admitted(coding: bytes) -> None:
    assert refused(admit(HOST, JSON, (b"content-encoding", coding))) == ("unsupported_media_type", 415)


@pytest.mark.parametrize("coding", [b"identity", b"Identity"])
def test_a_body_without_coding_may_say_so(coding: bytes) -> None:
    assert isinstance(admit(HOST, JSON, (b"content-encoding", coding)), Admitted)


# --- what a refusal needs to know -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "route"),
    [(b"/mcp", "/mcp"), (b"/weather/mcp?x", "/weather/mcp"), (b"/mcp/", ""), (b"", ""), (b"*", "")],
)
def test_the_route_of_a_refused_request_is_the_one_it_names(target: bytes, route: str) -> None:
    assert PORTER.route(arrive(target=target)) == route


def test_only_an_allowed_page_may_read_a_refusal() -> None:
    allowed, foreign = (b"origin", b"http://localhost:5173"), (b"origin", b"http://evil.com")

    assert (b"access-control-allow-origin", allowed[1]) in PORTER.cors(arrive(HOST, allowed))
    assert PORTER.cors(arrive(HOST, foreign)) == []
    assert PORTER.cors(arrive(HOST)) == []


# --- preflight ------------------------------------------------------------------------------------


def test_options_without_an_origin_lists_the_methods() -> None:
    request = arrive(HOST, method=b"OPTIONS")

    assert preflight(request, read_request(request.headers)) == (
        204,
        [(b"allow", b"GET, POST, DELETE, OPTIONS")],
    )


def test_row_28_a_preflight_is_answered_for_its_origin() -> None:
    request = arrive(
        HOST,
        (b"origin", b"http://localhost:5173"),
        (b"access-control-request-headers", b"mcp-method,mcp-param-a"),
        (b"access-control-request-headers", b"mcp-param-b"),
        method=b"OPTIONS",
    )

    status, headers = preflight(request, read_request(request.headers))

    fields = dict(headers)
    assert status == 204
    assert fields[b"access-control-allow-origin"] == b"http://localhost:5173"
    assert fields[b"access-control-allow-headers"].endswith(b", mcp-param-a, mcp-param-b")


# --- heads that differ in values that vary ---------------------------------------------------------

PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACED = [HOST, JSON, (b"x-request-id", b"one"), (b"traceparent", b"first"), (b"x-b", b"c")]
VALUES = [(b"x-request-id", b"two"), (b"traceparent", PARENT)]


@pytest.mark.parametrize("peer", ["10.0.0.1", "192.0.2.7"])
@pytest.mark.parametrize("fields", [TRACED, TRACED[2:] + TRACED[:2]])
def test_what_varies_is_told_and_sent_as_if_the_head_had_been_judged(fields: list[Header], peer: str) -> None:
    def judged(lines: list[Header]) -> Admitted:
        outcome = PORTER.admit(arrive(*lines, peer=peer))
        assert isinstance(outcome, Admitted)
        outcome.forward = FORWARDER.headers(outcome.request, outcome.head, None)
        outcome.renamed = (b"s", Fields([*outcome.forward, (b"mcp-session-id", b"s")]))
        outcome.context = (b"stale", None)
        return outcome

    varied = judged(fields).vary(VALUES)
    other = judged([(name, dict(VALUES).get(name, value)) for name, value in fields])
    other.context = None

    assert varied == other
    assert varied.forward is not None
    assert other.forward is not None
    assert varied.forward.block == other.forward.block
    assert varied.forward_as(b"s").block == other.forward_as(b"s").block


def test_what_varies_does_not_change_what_was_remembered() -> None:
    first = PORTER.admit(arrive(*TRACED, peer="10.0.0.1"))
    assert isinstance(first, Admitted)
    varied = first.vary([(b"x-request-id", b"two")])

    assert (first.own, varied.own) == (b"x-request-id: one\r\n", b"x-request-id: two\r\n")
    assert first.request.headers == TRACED
    assert varied.head is first.head
