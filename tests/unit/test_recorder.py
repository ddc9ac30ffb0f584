"""One record per exchange: what it says, to whom, and what it never says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mcp_proxy import clock
from mcp_proxy.admission import Admitted
from mcp_proxy.backends import Backend
from mcp_proxy.clock import Deadlines, Turns
from mcp_proxy.envelope import parse
from mcp_proxy.errors import Fault, Phase, UpstreamError
from mcp_proxy.exchange import Exchange
from mcp_proxy.headers import read_request
from mcp_proxy.recorder import Recorder
from mcp_proxy.replies import TABLE
from mcp_proxy.routing import Plan, plan_get, plan_post
from mcp_proxy.sessions import SessionKey
from mcp_proxy.tap import Owned
from mcp_proxy.telemetry import RequestRecord
from mcp_proxy.telemetry.families import CLOSE_REASONS
from mcp_proxy.wire import Fields, Headers, Rejection, Request
from tests.unit.fakes import settle
from tests.unit.poolside import pool_of

POOL = pool_of({}, name="main")


class Kept:
    """A sink that keeps."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def record(self, record: RequestRecord) -> None:
        self.records.append(record)


class Nobody:
    own = b""

    """Implements Director and Reply for exchanges that go nowhere."""

    def __init__(self) -> None:
        self.turns = Turns()

    json_hold = 1
    parting_due: Deadlines[Exchange] = Deadlines(None, Exchange.part_now)

    def on_head(self, exchange: Exchange, status: int, headers: Fields, length: int | None) -> None: ...

    def on_error(self, exchange: Exchange, error: UpstreamError) -> None: ...

    def on_stream(self, exchange: Exchange) -> None: ...

    def on_owned(self, exchange: Exchange, owned: Sequence[Owned]) -> None: ...

    def on_held(self, exchange: Exchange, owned: Sequence[Owned]) -> None: ...

    def on_finish(self, exchange: Exchange) -> None: ...

    def answer(self, status: int, headers: Headers, body: bytes) -> None: ...

    def start(self, status: int, headers: Headers, length: int | None) -> None: ...

    def write(self, chunk: bytes) -> None: ...

    def end(self) -> None: ...

    def abort(self) -> None: ...


OWN = b"x-request-id: the-request\r\n"


def arrive(method: bytes = b"POST") -> Request:
    return Request(method, b"/mcp?token=secret", [(b"mcp-session-id", b"the-session")], "10.0.0.1", "http")


def exchange(method: bytes = b"POST", body: bytes = b"") -> Exchange:
    request = arrive(method)
    admission = Admitted(
        request, read_request(request.headers), "/mcp", "main", b"?token=secret", "198.51.100.1", None
    )
    return Exchange(Nobody(), admission, POOL, body, Nobody())


def served(session_id: bytes = b"the-session") -> Exchange:
    """A tool call of a session, answered with a stream."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}'
    made = exchange(body=body)
    made.envelope = parse(body)
    plan = plan_post(made.admission.head, made.envelope)
    assert isinstance(plan, Plan)
    made.plan = plan
    made.key = SessionKey("main", session_id)
    made.backend = Backend("10.0.0.9", 8000, b"/mcp")
    made.status = 200
    made.bytes_out = 77
    made.streams_from = made.backend
    made.attempts = 2
    made.own = OWN
    made.started_s, made.waited_s, made.begun_s, made.byte_s, made.finished_s = 10.0, 1.5, 10.25, 13.0, 14.0
    return made


def recorded(made: Exchange, fault: Fault = Fault.NONE, phase: Phase = Phase.NONE) -> RequestRecord:
    made.fault, made.phase = fault, phase
    sink = Kept()
    Recorder({"kept": sink}).finished(made)
    (record,) = sink.records
    return record


async def test_a_record_says_what_happened() -> None:
    record = recorded(served(), Fault.BACKEND, Phase.BODY)

    assert (record.route, record.pool, record.backend) == ("/mcp", "main", "http://10.0.0.9:8000/mcp")
    assert (record.era, record.http_method) == ("legacy", "POST")
    assert (record.method, record.name, record.kind) == ("tools/call", "echo", "request")
    assert (record.status, record.reason) == (200, "")
    assert record.peer == "198.51.100.1"
    assert (record.duration_s, record.upstream_s) == (4.0, 1.5)
    assert (record.bytes_in, record.bytes_out) == (71, 77)
    assert (record.is_stream, record.attempts) == (True, 2)
    assert (record.ended_by, record.phase) == (Fault.BACKEND, Phase.BODY)
    assert (record.request_id, record.principal, record.trace) == ("the-request", "", None)
    assert (record.ttfb_s, record.idle_s) == (0.25, 1.0)


async def test_a_record_of_an_exchange_that_got_nowhere_is_full_of_nothing() -> None:
    record = recorded(exchange(b"GET"), Fault.CLIENT, Phase.ROUTE)

    assert (record.backend, record.era, record.session) == ("", "", "")
    assert (record.method, record.name, record.kind) == ("", "", "")
    assert (record.http_method, record.status, record.upstream_s, record.attempts) == ("GET", 0, 0.0, 0)


async def test_a_stream_without_a_byte_was_idle_since_its_head() -> None:
    made = served()
    made.byte_s = 0.0

    assert recorded(made).idle_s == 3.75


async def test_an_answer_in_one_piece_begins_when_it_ends_and_is_never_idle() -> None:
    made = served()
    made.streams_from, made.begun_s, made.byte_s = None, 0.0, 0.0
    record = recorded(made)

    assert (record.ttfb_s, record.idle_s) == (4.0, 0.0)


async def test_without_an_answer_there_is_no_first_byte() -> None:
    made = served()
    made.status, made.begun_s = 0, 0.0

    assert recorded(made).ttfb_s == 0.0


async def test_a_get_has_an_era_but_no_message() -> None:
    made = exchange(b"GET")
    plan = plan_get(made.admission.head)
    assert isinstance(plan, Plan)
    made.plan = plan

    record = recorded(made)

    assert (record.era, record.method, record.kind) == ("legacy", "", "")


async def test_a_record_names_a_session_by_a_hash_and_holds_no_secret() -> None:
    record = recorded(served())

    assert len(record.session) == 8
    assert int(record.session, 16) >= 0
    assert "the-session" not in repr(record)
    assert "secret" not in repr(record)


async def test_the_hash_of_a_session_is_stable_within_one_process_only() -> None:
    sink = Kept()
    recorder = Recorder({"kept": sink})
    for session_id in (b"a", b"b", b"a"):
        recorder.finished(served(session_id))
    names = [record.session for record in sink.records]

    assert names[0] == names[2] != names[1]
    assert len({recorded(served(b"a")).session for _ in range(4)}) > 1


async def test_every_sink_gets_every_record_once() -> None:
    sinks = [Kept(), Kept()]
    recorder = Recorder({"one": sinks[0], "two": sinks[1]})

    recorder.finished(served())
    recorder.refused(arrive(), "/mcp", Rejection("bad_request"), 400, 9, OWN)

    assert len(sinks[0].records) == 2
    assert sinks[0].records == sinks[1].records


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (b"GET", "GET"),
        (b"DELETE", "DELETE"),
        (b"OPTIONS", "OPTIONS"),
        (b"BREW", "other"),
        (b"post", "other"),
        (b"", ""),
    ],
)
async def test_unknown_methods_fold_into_other(method: bytes, name: str) -> None:
    sink = Kept()
    Recorder({"kept": sink}).refused(arrive(method), "", Rejection("not_found"), 404, 1, OWN)

    assert sink.records[0].http_method == name


async def test_a_refusal_is_recorded_with_what_is_known() -> None:
    sink = Kept()
    rejection = Rejection("forbidden_origin", "why")
    Recorder({"kept": sink}).refused(arrive(), "/mcp", rejection, 403, 123, OWN)

    (record,) = sink.records
    assert (record.route, record.pool, record.backend, record.session) == ("/mcp", "", "", "")
    assert (record.status, record.reason, record.bytes_out) == (403, "forbidden_origin", 123)
    assert (record.peer, record.request_id) == ("10.0.0.1", "the-request")
    assert (record.ended_by, record.phase) == (Fault.CLIENT, Phase.ADMIT)


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("bad_request", Fault.CLIENT),
        ("body_too_large", Fault.CLIENT),
        ("forbidden_origin", Fault.CLIENT),
        ("overloaded", Fault.PROXY),
        ("loop_detected", Fault.PROXY),
        ("request_timeout", Fault.TIMEOUT),
        ("draining", Fault.DRAIN),
    ],
)
async def test_a_refusal_is_the_fault_of_whoever_caused_it(reason: str, fault: Fault) -> None:
    sink = Kept()
    Recorder({"kept": sink}).refused(arrive(), "", Rejection(reason), TABLE[reason].status, 0, OWN)

    assert sink.records[0].ended_by is fault


async def test_every_way_to_end_a_stream_has_a_name() -> None:
    assert set(CLOSE_REASONS) == set(Fault)
    assert len(set(CLOSE_REASONS.values())) == len(Fault)


async def test_the_time_of_a_record_is_the_end_of_its_exchange_since_1970() -> None:
    sink = Kept()
    recorder = Recorder({"kept": sink}, batch=8)
    for later_s in (0.0, 4.0):
        made = exchange()
        made.finished_s = clock.now() + later_s
        recorder.finished(made)
    recorder.flush()
    first, second = sink.records

    assert first.time_s > 1.7e9
    assert second.time_s - first.time_s > 3.9


async def test_records_are_made_in_batches_in_the_order_of_their_ends() -> None:
    sink = Kept()
    recorder = Recorder({"kept": sink}, batch=3)
    names = [b"a", b"b", b"c", b"d"]
    for name in names[:2]:
        recorder.finished(served(name))
    await settle()
    assert sink.records == []

    recorder.finished(served(names[2]))
    assert sink.records == [], "the turn of the loop is not over"
    await settle()
    assert len(sink.records) == 3

    recorder.finished(served(names[3]))
    recorder.flush()
    recorder.flush()
    assert len(sink.records) == 4
    assert len({record.session for record in sink.records}) == 4


async def test_a_batch_is_recorded_once_even_if_a_sink_looks_for_more() -> None:
    kept = Kept()
    recorder = Recorder({}, batch=2)

    class Curious:
        def record(self, record: RequestRecord) -> None:
            recorder.flush()

    recorder = Recorder({"curious": Curious(), "kept": kept}, batch=2)
    recorder.finished(served())
    recorder.finished(served())
    await settle()

    assert len(kept.records) == 2


async def test_an_exchange_lasts_until_the_turn_is_over_in_which_its_last_bytes_left() -> None:
    sink = Kept()
    recorder = Recorder({"kept": sink}, batch=1)
    made = exchange()
    made.finished_s = clock.now()
    await settle()
    recorder.finished(made)
    (record,) = sink.records

    assert made.last.ended_s > made.finished_s
    assert record.duration_s == made.last.ended_s - made.started_s


async def test_a_sink_that_fails_is_counted_and_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def record(self, record: RequestRecord) -> None:
            raise ZeroDivisionError

    kept = Kept()
    failed: list[str] = []
    recorder = Recorder({"broken": Broken(), "kept": kept}, batch=2, on_failure=failed.append)

    for _ in range(3):
        recorder.finished(served())
    recorder.flush()
    recorder.refused(arrive(), "/mcp", Rejection("bad_request"), 400, 9, OWN)

    assert len(kept.records) == 4
    assert failed == ["broken"] * 4
    (logged,) = caplog.records
    assert "sink broken" in logged.getMessage()
    assert logged.exc_info is not None


async def test_a_sink_may_come_and_go_and_gets_what_ends_between() -> None:
    kept, late = Kept(), Kept()
    recorder = Recorder({"kept": kept}, batch=8)
    recorder.finished(served())
    recorder.attach("late", late)
    recorder.finished(served())
    recorder.attach("late", None)
    recorder.attach("late", None)
    recorder.finished(served())
    recorder.flush()

    assert (len(kept.records), len(late.records)) == (3, 1)


@pytest.mark.parametrize(
    ("begun_s", "byte_s", "idle_s"), [(10.25, 13.0, 1.0), (10.25, 0.0, 3.75), (0.0, 0.0, 0.0)]
)
async def test_a_stream_is_idle_since_its_last_byte_or_its_head_if_it_had_any(
    begun_s: float, byte_s: float, idle_s: float
) -> None:
    made = served()
    made.begun_s, made.byte_s = begun_s, byte_s

    assert recorded(made).idle_s == idle_s
