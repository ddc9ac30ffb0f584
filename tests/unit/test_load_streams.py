"""Who is told to wait, what is no request with an answer, and how streams end.

Rules of this file: those of ``test_load_client.py``.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from mcp_proxy.load import Target, messages
from mcp_proxy.load.client import LONGEST_WAIT_S, told_to_wait
from mcp_proxy.load.connection import Connection, Reply
from mcp_proxy.load.stream import Failed, Stopped
from tests.tools import PATIENCE_S
from tests.tools.tls import Authority
from tests.unit.loadrig import (
    OK,
    PROGRESS,
    RESULT,
    STREAM_HEAD,
    ask,
    chunk,
    client_of,
    http,
    raw_server,
    reasons,
    then_close,
    then_reset,
)

BUSY = http(503, b"{}", "retry-after: 0")


# --- told to wait -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [503, 429])
def test_who_is_told_to_wait_waits_and_is_served(status: int) -> None:
    with raw_server(http(status, b"{}", "retry-after: 0", "mcp-proxy-reason: draining"), OK) as server:
        client = client_of(server)
        ask(client)
        client.close()
    row = client.ledger.operations["session tools/call"]
    assert (row.waits, client.ledger.answers, reasons(client)) == (1, 1, [])
    assert client.ledger.refusals == {"draining": 1}
    assert len(server.requests) == 2
    assert server.requests[0] == server.requests[1]


def test_who_is_never_served_has_failed() -> None:
    with raw_server(BUSY) as server:
        client = client_of(server, patience_s=0.12)
        with pytest.raises(Failed):
            ask(client)
    assert reasons(client) == ["never served, only told to wait"]
    assert len(server.requests) >= 2


def test_who_waits_can_be_stopped_and_nothing_has_failed() -> None:
    with raw_server(http(503, b"{}", "retry-after: 3600")) as server:
        client = client_of(server)
        client.stopping.set()
        with pytest.raises(Stopped):
            ask(client)
        client.close()
    assert reasons(client) == []


@pytest.mark.parametrize(
    ("after", "seconds"),
    [("0", 0.05), ("2", 2.0), ("9999", LONGEST_WAIT_S), ("Sun, 06 Nov 1994 08:49:37 GMT", 1.0)],
)
def test_retry_after_is_obeyed_within_bounds(after: str, seconds: float) -> None:
    with raw_server(http(503, b"", f"retry-after: {after}")) as server:
        connection = Connection(server.target)
        reply: Reply = connection.ask("GET", [], None, PATIENCE_S)
        assert told_to_wait(reply) == seconds
        connection.close()


def test_the_time_of_a_late_request_counts_from_when_it_was_due() -> None:
    with raw_server(OK) as server:
        client = client_of(server)
        client.due = time.perf_counter() - 5.0
        ask(client)
        ask(client)
        client.close()
    row = client.ledger.operations["session tools/call (JSON)"]
    (late,) = row.late
    assert late > max(row.times), "five seconds late, and quick once it was sent"
    assert sum(row.late.values()) == 1, "a moment is that of one request"


# --- notifications, sessions, streams ---------------------------------------------------------


@pytest.mark.parametrize("status", [200, 202, 204])
def test_a_notification_is_accepted(status: int) -> None:
    with raw_server(http(status)) as server:
        client = client_of(server)
        client.tell("notifications/initialized", messages.notification("notifications/initialized"), [])
        client.close()
    assert reasons(client) == []


@pytest.mark.parametrize(
    ("status", "is_right"), [(200, True), (204, True), (405, True), (404, False), (500, False)]
)
def test_a_session_ends_or_is_left_to_time(status: int, is_right: bool) -> None:
    with raw_server(http(status)) as server:
        client = client_of(server)
        with contextlib.nullcontext() if is_right else pytest.raises(Failed):
            client.delete([])
        client.close()
    assert (reasons(client) == []) is is_right
    assert client.ledger.post_failures == 0, "a DELETE is no POST"


@pytest.mark.parametrize(
    ("answer", "reason", "ends"),
    [
        (STREAM_HEAD + chunk(PROGRESS) + b"0\r\n\r\n", None, 1),
        (then_close(STREAM_HEAD + chunk(PROGRESS)), "stream cut: connection closed inside the answer", 0),
        (then_reset(STREAM_HEAD), "stream cut: connection lost: connection reset by peer", 0),
        (
            STREAM_HEAD + chunk(PROGRESS[:-1]) + b"0\r\n\r\n",
            "stream cut: an event stream that ended inside an event",
            0,
        ),
        (http(405), "HTTP 405", 0),
        (http(200, b"{}"), "content type application/json", 0),
    ],
    ids=["ends", "is cut", "is reset", "ends inside an event", "is refused", "is none"],
)
def test_how_a_stream_ends_decides_whether_it_failed(answer: bytes, reason: str | None, ends: int) -> None:
    with raw_server(answer) as server:
        client = client_of(server)
        with (
            contextlib.suppress(Failed),
            contextlib.closing(client.stream("GET stream", "GET", [])) as stream,
        ):
            while not stream.has_ended:
                stream.events(PATIENCE_S)
    assert reasons(client) == ([] if reason is None else [reason])
    assert client.ledger.operations["session GET stream"].ends == ends


def test_a_quiet_stream_has_no_events_and_has_not_ended() -> None:
    with raw_server(STREAM_HEAD) as server:
        client = client_of(server)
        stream = client.stream("GET stream", "GET", [])
        assert stream.events(0.01) == []
        assert not stream.has_ended
        stream.close()
    assert reasons(client) == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_stops_a_stream_wakes_its_reader_and_nothing_has_failed(scheme: str, tmp_path: Path) -> None:
    context = Authority(tmp_path).listening() if scheme == "https" else None

    def serve(listening: socket.socket) -> None:
        peer, _ = listening.accept()
        wire = peer if context is None else context.wrap_socket(peer, server_side=True)
        with wire, contextlib.suppress(OSError):
            wire.recv(65536)
            wire.sendall(STREAM_HEAD)
            wire.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        where = Target(scheme, "127.0.0.1", listening.getsockname()[1], "/mcp")
        client = client_of(where, verify=False)
        stream = client.stream("GET stream", "GET", [])
        is_reading = threading.Event()
        ended: list[BaseException] = []

        def read() -> None:
            is_reading.set()
            try:
                while not stream.has_ended:
                    stream.events(PATIENCE_S)
            except Exception as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert is_reading.wait(PATIENCE_S)
        stream.stop()
        reader.join(PATIENCE_S)
        assert not reader.is_alive()
        stream.close()
    assert [type(error) for error in ended] == [Stopped]
    assert reasons(client) == []


def test_a_stream_has_its_own_connection() -> None:
    with raw_server(OK, STREAM_HEAD, OK) as server:
        client = client_of(server)
        ask(client)
        kept = client._connection
        stream = client.stream("GET stream", "GET", [])
        assert client._connection is kept
        ask(client)
        assert client._connection is kept
        stream.close()
        client.close()


def test_a_proxys_word_is_counted_also_of_what_is_right() -> None:
    with raw_server(http(200, RESULT, "mcp-proxy-reason: x")) as server:
        client = client_of(server)
        ask(client)
        client.close()
    assert client.ledger.refusals == {"x": 1}
