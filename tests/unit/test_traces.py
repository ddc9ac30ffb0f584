"""Whose trace a request belongs to, what is recorded, and what is noted of it: by the letter of W3C."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from mcp_proxy.telemetry.traces import (
    BODY_LIMIT,
    STATE_LIMIT,
    STATE_MEMBERS,
    Context,
    Trace,
    Tracer,
    read_parent,
    read_state,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"
OTHER = f"00-{'a' * 32}-{'b' * 16}-01"

trace_ids = st.integers(1, (1 << 128) - 1)
span_ids = st.integers(1, (1 << 64) - 1)
flag_bytes = st.integers(0, 255)


def numbers(first: int = 1) -> Callable[[int], int]:
    """Draws 1, 2, 3 ... instead of random bits."""
    following = count(first)
    return lambda bits: next(following)


def begun(*context: bytes | str | None, sample: float = 0.0) -> Trace | None:
    header, state, meta, meta_state = (*context, None, None, None, None)[:4]
    assert not isinstance(header, str)
    assert not isinstance(state, str)
    assert not isinstance(meta, bytes)
    assert not isinstance(meta_state, bytes)
    return Tracer(sample, draw=numbers()).begin(header, state, meta, meta_state)


def recorded(*context: bytes | str | None, sample: float = 0.0) -> Trace:
    trace = begun(*context, sample=sample)
    assert trace is not None
    return trace


# --- traceparent -------------------------------------------------------------------------------------------


@given(trace_ids, span_ids, flag_bytes)
def test_what_is_written_is_read_back(trace_id: int, span_id: int, flags: int) -> None:
    text = f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"

    assert read_parent(text) == Context(trace_id, span_id, flags)


@given(st.one_of(st.text(), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?")))
@example(PARENT + "\n")
def test_a_traceparent_of_any_form_is_read_or_refused(text: str) -> None:
    context = read_parent(text)

    if context is not None:
        assert text[2:55] == f"-{context.trace_id:032x}-{context.span_id:016x}-{context.flags:02x}"
        assert len(text) == 55 or (text[:2] != "00" and text[55] == "-")


@pytest.mark.parametrize(
    "text",
    [
        "",
        PARENT[:-1],
        PARENT + "0",
        PARENT + "-00",
        PARENT + " ",
        " " + PARENT,
        PARENT.upper(),
        PARENT.replace("-", "_"),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}-0\u0661",
        f"cc-{TRACE}-{SPAN}-01.what",
        f"0-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_not_valid_is_not_a_parent(text: str) -> None:
    assert read_parent(text) is None


@pytest.mark.parametrize("rest", ["", "-", "-what-the-future-will-be-like", "-" + "x" * 10_000])
def test_of_a_later_version_the_part_that_is_known_is_read(rest: str) -> None:
    assert read_parent(f"cc-{TRACE}-{SPAN}-01{rest}") == Context(int(TRACE, 16), int(SPAN, 16), 1)


# --- tracestate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        "a=b, c=d\t,,e=f",
        "fw529a3039@dt=FfAAAA",
        "a=" + "v" * 256,
        ",".join(f"k{number}=v" for number in range(STATE_MEMBERS)),
    ],
)
def test_a_tracestate_is_passed_on_as_it_is(text: str) -> None:
    assert read_state(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a",
        "=b",
        "A=b",
        "a=b=c",
        "a=b\r\nx-evil: 1",
        "a=\xe9",
        "a=b,a=c",
        "a=" + "v" * 257,
        ",".join(f"k{number}=v" for number in range(STATE_MEMBERS + 1)),
        ",".join(f"k{number}={'v' * 100}" for number in range(STATE_LIMIT // 100)),
    ],
)
def test_a_tracestate_that_is_not_valid_or_too_long_is_dropped_whole(text: str) -> None:
    assert read_state(text) == ""


@given(st.text())
def test_no_tracestate_can_end_a_header_line(text: str) -> None:
    passed = read_state(text)

    assert passed in ("", text)
    assert passed.isascii()
    assert not set(passed) & set("\r\n\0")


# --- who decides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [0.0, 0.5, 1.0])
def test_who_began_a_trace_decides_whether_it_is_recorded(sample: float) -> None:
    trace = recorded(PARENT.encode(), b"a=b", sample=sample)

    assert (trace.text, trace.parent_id, trace.state, trace.link) == (TRACE, int(SPAN, 16), "a=b", None)
    assert begun(UNSAMPLED.encode(), sample=sample) is None
    assert begun(None, None, UNSAMPLED, sample=sample) is None


def test_any_flags_with_the_lowest_bit_mean_recorded() -> None:
    assert begun(PARENT[:-2].encode() + b"ff") is not None
    assert begun(PARENT[:-2].encode() + b"fe", sample=1.0) is None


def test_the_context_of_the_message_goes_before_that_of_the_request_which_is_linked() -> None:
    trace = recorded(OTHER.encode(), b"http=1", PARENT, "meta=1")

    assert (trace.text, trace.parent_id, trace.state) == (TRACE, int(SPAN, 16), "meta=1")
    assert trace.link == (int("a" * 32, 16), int("b" * 16, 16), 1)


def test_a_message_that_is_not_to_be_recorded_is_not_whatever_the_request_says() -> None:
    assert begun(PARENT.encode(), None, UNSAMPLED, sample=1.0) is None


def test_the_same_span_in_both_places_is_no_link() -> None:
    assert recorded(PARENT.encode(), None, PARENT).link is None
    assert recorded(UNSAMPLED.encode(), None, PARENT).link is None
    assert recorded(b"garbage", None, PARENT).link is None
    assert recorded(None, None, PARENT).link is None


def test_a_message_without_a_valid_context_leaves_the_word_to_the_request() -> None:
    trace = recorded(PARENT.encode(), b"http=1", "garbage", "meta=1")

    assert (trace.text, trace.state, trace.link) == (TRACE, "http=1", None)


def test_without_a_valid_context_a_trace_begins_and_a_state_means_nothing() -> None:
    trace = recorded(b"garbage", b"http=1", "garbage", "meta=1", sample=1.0)

    assert (trace.trace_id, trace.parent_id, trace.state, trace.link) == (1, 0, "", None)
    assert (trace.text, trace.span_id) == ("0" * 31 + "1", 2)


def test_bytes_that_are_no_text_are_no_context() -> None:
    assert begun(b"\xff" * 55) is None
    assert recorded(PARENT.encode(), b"a=\xff").state == ""


@given(st.binary() | st.none(), st.binary() | st.none(), st.text() | st.none(), st.text() | st.none())
def test_no_context_whatever_it_is_raises(
    header: bytes | None, state: bytes | None, meta: str | None, meta_state: str | None
) -> None:
    for sample in (0.0, 1.0):
        trace = Tracer(sample).begin(header, state, meta, meta_state)
        assert trace is None or 0 < trace.trace_id < 1 << 128


# --- how many ----------------------------------------------------------------------------------------------


@given(trace_ids)
def test_none_and_all_are_exact(trace_id: int) -> None:
    assert Tracer(0.0, draw=lambda bits: trace_id).begin(None, None, None, None) is None
    assert Tracer(1.0, draw=lambda bits: trace_id).begin(None, None, None, None) is not None


@given(trace_ids, st.floats(0, 1))
def test_the_same_traces_are_chosen_as_by_the_sdk(trace_id: int, sample: float) -> None:
    theirs = TraceIdRatioBased(sample).should_sample(None, trace_id, "name").decision

    ours = Tracer(sample, draw=lambda bits: trace_id).begin(None, None, None, None)
    assert (ours is not None) == (theirs is Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize("sample", [0.01, 0.25, 0.5])
def test_the_share_that_is_recorded_is_the_one_that_was_asked_for(sample: float) -> None:
    spread = iter([(2 * step + 1 << 63) // 1000 for step in range(1000)])
    tracer = Tracer(sample, draw=lambda bits: next(spread) if bits == 128 else 1)
    traces = [tracer.begin(None, None, None, None) for _ in range(1000)]

    assert 1000 - traces.count(None) == round(sample * 1000)


def test_an_id_is_never_zero() -> None:
    trace = Tracer(1.0, draw=lambda bits: 0).begin(None, None, None, None)

    assert trace is not None
    assert (trace.trace_id, trace.span_id) == (1, 1)


def test_ids_are_as_long_as_they_have_to_be() -> None:
    asked: list[int] = []

    def draw(bits: int) -> int:
        asked.append(bits)
        return 1

    trace = Tracer(1.0, draw=draw).begin(None, None, None, None)

    assert trace is not None
    trace.attempt("b", "h", 1, 1.0)
    assert asked == [128, 64, 64]


# --- what is noted -----------------------------------------------------------------------------------------


def test_an_attempt_is_told_to_its_backend() -> None:
    trace = recorded(PARENT.encode(), b"a=b,c=d")

    lines = trace.attempt("b1", "10.0.0.1", 8000, 1.0), trace.attempt("b2", "10.0.0.2", 8001, 2.0)

    first, second = trace.attempts
    assert lines == (
        b"traceparent: 00-%b-%016x-01\r\ntracestate: a=b,c=d\r\n" % (TRACE.encode(), first.span_id),
        b"traceparent: 00-%b-%016x-01\r\ntracestate: a=b,c=d\r\n" % (TRACE.encode(), second.span_id),
    )
    assert len({trace.span_id, first.span_id, second.span_id}) == 3
    assert (second.backend, second.host, second.port, second.sent_s) == ("b2", "10.0.0.2", 8001, 2.0)


def test_without_a_state_there_is_no_line_for_it() -> None:
    assert recorded(PARENT.encode()).attempt("b", "h", 1, 1.0).count(b"\r\n") == 1


def test_of_an_attempt_the_first_end_counts() -> None:
    trace = recorded(sample=1.0)
    trace.attempt("b", "h", 1, 1.0)
    trace.answered(2.0, 200)
    trace.ended(3.0, "lost")
    trace.ended(4.0)
    trace.attempt("c", "h", 1, 5.0)
    trace.ended(6.0)

    first, second = trace.attempts
    assert (first.head_s, first.status, first.ended_s, first.error) == (2.0, 200, 3.0, "lost")
    assert (second.head_s, second.status, second.ended_s, second.error) == (0.0, 0, 6.0, "")


def test_of_an_answer_the_end_is_kept() -> None:
    trace = recorded(sample=1.0)
    trace.rpc_id = b"1"
    for number in range(10):
        trace.peek(b"%d" % number * (BODY_LIMIT // 2))
    trace.peek(b"the end")

    assert len(trace.body) == BODY_LIMIT
    assert trace.body.endswith(b"99the end")
    assert trace.body.startswith(b"8")


def test_an_answer_to_nobody_is_not_looked_at() -> None:
    trace = recorded(sample=1.0)
    trace.peek(b"data: {}\n\n")

    assert trace.body == b""


def test_no_more_is_recorded_in_a_second_than_the_limit_whoever_asks_for_it() -> None:
    times = iter([5.0, 5.5, 5.9, 6.0, 6.1, 6.2, 6.3])
    tracer = Tracer(1.0, limit=2, clock=lambda: next(times))
    parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    asked = (parent, None, parent, parent, None, None)
    recorded = [tracer.begin(each, None, None, None) is not None for each in asked]

    assert recorded == [True, True, False, True, True, False]
    assert tracer.limited == 2


def test_what_is_not_sampled_does_not_use_up_the_limit() -> None:
    tracer = Tracer(0.0, limit=1, clock=lambda: 1.0)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
    for _ in range(10):
        assert tracer.begin(None, None, parent + "0", None) is None
        assert tracer.begin(None, None, None, None) is None

    assert tracer.begin(None, None, parent + "1", None) is not None
    assert tracer.limited == 0
