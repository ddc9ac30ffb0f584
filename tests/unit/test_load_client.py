"""What counts as an answer, and what as a failure, byte by byte.

Rules of this file: the client is the users' own, over real sockets; the server says what the case says. A
failure is looked up in the ledger, by its reason: what is not counted did not happen.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from mcp_proxy.load import Target, messages
from mcp_proxy.load.client import Client
from mcp_proxy.load.ledger import Ledger, quantile
from mcp_proxy.load.stream import Failed
from tests.tools import PATIENCE_S
from tests.tools.ports import free_ports
from tests.tools.tls import Authority
from tests.unit.loadrig import (
    EVENT,
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


# --- right answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        then_close(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + RESULT),
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
        b"content-type: application/json; charset=utf-8\r\n\r\n"
        + chunk(RESULT[:9])
        + chunk(RESULT[9:])
        + b"0\r\n\r\n",
        STREAM_HEAD + chunk(EVENT) + b"0\r\n\r\n",
        STREAM_HEAD + chunk(PROGRESS + EVENT[:7]) + chunk(EVENT[7:]) + b"0\r\n\r\n",
        STREAM_HEAD + chunk(b": hi\n\n" + EVENT) + chunk(b": bye\n\n") + b"0\r\n\r\n",
    ],
    ids=["length", "until close", "early hints", "chunked", "one event", "progress and answer", "comments"],
)
def test_a_right_answer_is_one_however_it_is_framed(answer: bytes) -> None:
    with raw_server(answer) as server:
        client = client_of(server)
        assert ask(client).message == json.loads(RESULT)
        assert reasons(client) == []
        client.close()


def test_answers_by_json_and_by_events_are_rows_of_their_own() -> None:
    with raw_server(OK, STREAM_HEAD + chunk(PROGRESS + EVENT) + b"0\r\n\r\n") as server:
        client = client_of(server)
        ask(client)
        ask(client)
        client.close()
    rows = client.ledger.operations
    assert rows["session tools/call (JSON)"].answers == rows["session tools/call (SSE)"].answers == 1
    assert sum(rows["session tools/call (SSE)"].first.values()) == 1
    assert sum(rows["session tools/call (SSE)"].gaps.values()) == 1
    assert rows["session tools/call (JSON)"].first == {}


def test_a_connection_is_used_again_and_again() -> None:
    with raw_server(OK) as server:
        client = client_of(server)
        connections = set()
        for _ in range(3):
            ask(client)
            connections.add(client._connection)
        client.close()
    assert len(connections) == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "first",
    [
        http(200, RESULT, "connection: close"),
        then_close(OK),
        OK + b"HTTP/1.1 200 OK\r\n",
        then_close(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + RESULT),
    ],
    ids=["announced", "closed", "surplus", "until close"],
)
def test_a_connection_that_has_ended_is_not_used_for_the_next_request(first: bytes) -> None:
    """What a client can see before it sends is no failure of the server."""
    with raw_server(first, OK) as server:
        client = client_of(server)
        ask(client)
        _until_seen(client)
        ask(client)
        client.close()
    assert reasons(client) == []
    assert len(server.requests) == 2


def _until_seen(client: Client) -> None:
    """The end, or what is too much, has come to this side: there is nothing else to wait for."""
    connection = client._connection
    until = time.monotonic() + PATIENCE_S
    while connection is not None and connection.is_usable():
        assert time.monotonic() < until


def test_every_request_has_what_the_transport_asks_for() -> None:
    with raw_server(OK) as server:
        client = Client(server.target, Ledger(), "session", headers=[("Authorization", "Bearer x")])
        client.ask(
            "tools/list", 1, messages.request(1, "tools/list"), messages.session_fields("s", "2025-11-25")
        )
        client.close()
    head = server.requests[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert head[0] == "POST /mcp HTTP/1.1"
    assert {
        f"Host: {server.target.authority}",
        "Accept: application/json, text/event-stream",
        "Content-Type: application/json",
        "Authorization: Bearer x",
        "MCP-Protocol-Version: 2025-11-25",
        "Mcp-Session-Id: s",
    } <= set(head)


# --- wrong answers ----------------------------------------------------------------------------


def error(code: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"error":{"code":%d,"message":"x"}}' % code


WRONG = {
    "a status": (http(500, b"{}"), "HTTP 500"),
    "the proxy's word": (http(502, b"{}", "mcp-proxy-reason: upstream_lost"), "HTTP 502 upstream_lost"),
    "503 that says not when": (http(503, b"{}"), "HTTP 503"),
    "500 that says when": (http(500, b"{}", "retry-after: 0"), "HTTP 500"),
    "202 to a request": (http(202), "HTTP 202"),
    "a redirect": (http(307, b"", "location: /x"), "HTTP 307"),
    "an error inside 200": (http(200, error(-32603)), "JSON-RPC error -32603"),
    "a failed tool inside 200": (
        http(200, b'{"jsonrpc":"2.0","id":1,"result":{"isError":true}}'),
        "isError in the result",
    ),
    "somebody else's answer": (http(200, RESULT.replace(b"1,", b"2,")), "an answer to something else"),
    "no JSON": (http(200, b"<html>"), "a body that is no JSON object"),
    "a batch": (http(200, b"[]"), "a body that is no JSON object"),
    "HTML": (http(200, b"<html>", kind="text/html"), "content type text/html"),
    "half a body": (
        then_close(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"),
        "connection closed inside the answer",
    ),
    "half a head": (then_close(b"HTTP/1.1 200 OK\r\nconte"), "connection closed before the answer"),
    "nothing": (then_close(b""), "connection closed before the answer"),
    "a reset": (then_reset(b"HTTP/1.1 200 OK\r\n"), "connection lost: connection reset by peer"),
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
    "events, then an error": (
        STREAM_HEAD + chunk(PROGRESS + b"data: " + error(-1) + b"\n\n") + b"0\r\n\r\n",
        "JSON-RPC error -1",
    ),
    "events without the answer": (
        STREAM_HEAD + chunk(PROGRESS) + b"0\r\n\r\n",
        "an event stream that ended without the answer",
    ),
    "no event at all": (STREAM_HEAD + b"0\r\n\r\n", "an event stream that ended without the answer"),
    "a stream that is cut": (
        then_close(STREAM_HEAD + chunk(PROGRESS)),
        "connection closed inside the answer",
    ),
    "a stream that is cut behind its answer": (
        then_close(STREAM_HEAD + chunk(EVENT)),
        "connection closed inside the answer",
    ),
    "a stream that ends inside an event": (
        STREAM_HEAD + chunk(EVENT[:-1]) + b"0\r\n\r\n",
        "an event stream that ended inside an event",
    ),
    "a line without end": (
        STREAM_HEAD + chunk(b"x" * (17 * 1024 * 1024)) + b"0\r\n\r\n",
        "a line of more than 16777216 bytes",
    ),
}


@pytest.mark.parametrize(("answer", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_a_failure_with_its_reason(answer: bytes, reason: str) -> None:
    with raw_server(answer) as server:
        client = client_of(server)
        with pytest.raises(Failed):
            ask(client)
        client.close()
    assert reasons(client) == [reason]
    assert client.ledger.post_failures == 1
    assert client.ledger.answers == 0
    assert len(server.requests) == 1, "a request that may have run is never sent again"


def test_silence_is_a_failure() -> None:
    with raw_server(b"") as server:
        client = client_of(server, timeout_s=0.1)
        with pytest.raises(Failed):
            ask(client)
    assert reasons(client) == ["no answer in 0.1 s"]


def test_keep_alives_are_no_answer() -> None:
    def ping(request: bytes, connection: socket.socket) -> None:
        connection.sendall(STREAM_HEAD)
        while True:
            connection.sendall(chunk(b": ping\n\n"))
            threading.Event().wait(0.01)

    with raw_server(ping) as server:
        client = client_of(server, timeout_s=0.2)
        with pytest.raises(Failed):
            ask(client)
    assert reasons(client) == ["no answer in 0.2 s"]


def test_a_stream_that_stays_open_behind_its_answer_costs_its_connection_and_nothing_else() -> None:
    with raw_server(STREAM_HEAD + chunk(EVENT), OK) as server:
        client = client_of(server)
        began = time.perf_counter()
        ask(client)
        ask(client)
        client.close()
    assert reasons(client) == []
    row = client.ledger.operations["session tools/call (SSE)"]
    seconds = quantile(row.times, 1.0)
    assert seconds is not None
    assert seconds < time.perf_counter() - began - 0.9, "the answer's time is not that of the wait behind it"


def test_a_name_that_cannot_be_one_is_a_failure() -> None:
    client = client_of(Target("http", "a..b", 80, "/mcp"))
    with pytest.raises(Failed):
        ask(client)
    (reason,) = reasons(client)
    assert reason.startswith("cannot connect: ")


@pytest.mark.parametrize("trusted", [True, False])
def test_a_certificate_is_verified_unless_told_otherwise(trusted: bool, tmp_path: Path) -> None:
    context = Authority(tmp_path).listening()

    def serve(listening: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(listening.accept()[0], server_side=True) as peer,
        ):
            peer.recv(65536)
            peer.sendall(OK)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        where = Target("https", "127.0.0.1", listening.getsockname()[1], "/mcp")
        client = client_of(where, verify=not trusted)
        with contextlib.nullcontext() if trusted else pytest.raises(Failed):
            ask(client)
        client.close()
    assert all(reason.startswith("cannot connect: certificate not trusted") for reason in reasons(client))
    assert bool(reasons(client)) is not trusted


def test_nobody_there_is_a_failure() -> None:
    (port,) = free_ports(1)
    client = client_of(Target("http", "127.0.0.1", port, "/mcp"))
    with pytest.raises(Failed):
        ask(client)
    assert reasons(client) == ["cannot connect: connection refused"]
