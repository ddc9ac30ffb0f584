"""The ``httpx`` transport over HTTP/1.1: what leaves, and how an answer is framed."""

from __future__ import annotations

import pytest

from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream import Outgoing
from mcp_proxy.upstream.httpx import HttpxTransport
from mcp_proxy.wire import Fields
from tests.tools.backend import Backend
from tests.tools.receiver import RecordingReceiver
from tests.unit.upstream_httpx.scripts import CHUNKED, POST, Send, raw

# --- the request ---------------------------------------------------------------------------------


async def test_a_request_leaves_with_its_target_and_body_untouched(backend: Backend, send: Send) -> None:
    headers = Fields([(b"x-a", b"1"), (b"accept", b"a"), (b"x-a", b"\xfc")])
    await send(Outgoing(b"POST", b"/m/%7e%zz/../x?q=%2F&&=", headers, b"\x00{}")).over()
    request = backend.take_one()
    assert request.raw == (
        b"POST /m/%%7e%%zz/../x?q=%%2F&&= HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
        b"x-a: 1\r\naccept: a\r\nx-a: \xfc\r\ncontent-length: 3\r\n\r\n" % backend.port
    )
    assert request.body == b"\x00{}"


@pytest.mark.parametrize(("method", "length"), [(b"POST", b"0"), (b"GET", None), (b"DELETE", None)])
async def test_only_a_post_announces_an_empty_body(
    backend: Backend, send: Send, method: bytes, length: bytes | None
) -> None:
    await send(Outgoing(method, b"/mcp", Fields(), b"")).over()
    assert backend.take_one().head.one("content-length") == length


async def test_cookies_are_never_kept(backend: Backend, send: Send) -> None:
    backend.handler = raw(b"HTTP/1.1 200 OK\r\nSet-Cookie: who=alice\r\nContent-Length: 0\r\n\r\n")
    await send().over()
    await send().over()
    assert [request.head.all("cookie") for request in backend.take()] == [[], []]


async def test_proxy_variables_of_the_environment_are_ignored(
    backend: Backend, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    transport = HttpxTransport(origin=f"http://127.0.0.1:{backend.port}", tasks=tasks)
    receiver = RecordingReceiver()
    transport.send(POST, receiver)
    assert (await receiver.over()).ended
    await transport.aclose()


# --- the response --------------------------------------------------------------------------------


async def test_a_response_arrives_without_framing_and_hop_by_hop_headers(
    backend: Backend, send: Send
) -> None:
    backend.handler = raw(
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\nConnection: X-Private\r\nX-Private: 1\r\nKeep-Alive: 5\r\n"
        b"x-a: \xfc\r\nMcp-Session-Id: s\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 4\r\n\r\n\x1f\x8b\x00\x00"
    )
    receiver = await send().over()
    assert receiver.head == (
        200,
        [(b"x-a", b"1"), (b"x-a", b"\xfc"), (b"mcp-session-id", b"s"), (b"content-encoding", b"gzip")],
        4,
    )
    assert receiver.body == b"\x1f\x8b\x00\x00"


@pytest.mark.parametrize(
    ("answer", "end", "status", "length", "body"),
    [
        pytest.param(CHUNKED + b"\r\n1\r\na\r\n1;x=y\r\nb\r\n0\r\n\r\n", "", 200, None, b"ab", id="chunked"),
        pytest.param(CHUNKED + b"\r\n1\r\na\r\n0\r\nX-T: 1\r\n\r\n", "", 200, None, b"a", id="trailers"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nabc", "fin", 200, None, b"abc", id="close-delimited"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nabc", "fin", 200, None, b"abc", id="http-1.0"),
        pytest.param(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", "", 202, 0, b"", id="empty"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", "", 204, 0, b"", id="204"),
        pytest.param(b"HTTP/1.1 304 X\r\nContent-Length: 9\r\n\r\n", "", 304, 0, b"", id="304 with a length"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
            "", 200, 1, b"a", id="1xx first",
        ),
        pytest.param(
            # RFC 9112 section 6.3 item 5 lets a recipient take equal values as one.
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            "", 200, 1, b"a", id="equal lengths",
        ),
    ],
)  # fmt: skip
async def test_a_body_ends_where_its_framing_says(
    backend: Backend, send: Send, answer: bytes, end: str, status: int, length: int | None, body: bytes
) -> None:
    backend.handler = raw(answer, end)
    receiver = await send().over()
    assert receiver.verdict is None
    assert receiver.head == (status, [], length)
    assert receiver.body == body


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", id="CL and TE"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n", id="TE and CL"
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n", id="TE in 1.0"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n", id="gzip, chunked"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n", id="identity"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n", id="hex length"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n", id="unsolicited 101"),
        pytest.param(b"HTTP/1.1 700 X\r\nContent-Length: 1\r\n", id="700"),
        pytest.param(b"HTTP/1.1 099 X\r\nContent-Length: 1\r\n", id="099"),
        pytest.param(b"HTTP/2.0 200 OK\r\nContent-Length: 1\r\n", id="HTTP/2.0"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX Y: 1\r\n", id="bad name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n", id="NUL"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n", id="endless head"),
    ],
)
async def test_what_rfc_9112_forbids_is_invalid_and_the_connection_goes(
    backend: Backend, send: Send, head: bytes
) -> None:
    backend.handler = raw(head + b"\r\n1\r\na\r\n0\r\n\r\n")
    receiver = await send().over()
    assert receiver.head is None
    assert receiver.verdict == ("HEAD", "invalid", True, False)
    await backend.take_one().conn.gone()


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", b"abc", id="length"),
        pytest.param(CHUNKED + b"\r\n5\r\nabc", b"abc", id="inside a chunk"),
        pytest.param(CHUNKED + b"\r\n3\r\nabc\r\n", b"abc", id="between chunks"),
        pytest.param(CHUNKED + b"\r\n3\r\nabc\r\n0\r\n", b"abc", id="last chunk"),
    ],
)
async def test_a_truncated_body_is_an_error_and_never_an_end(
    backend: Backend, send: Send, answer: bytes, body: bytes, end: str
) -> None:
    backend.handler = raw(answer, end)
    receiver = await send().over()
    assert receiver.verdict == ("BODY", "lost", True, False)
    assert receiver.body == body


async def test_a_close_delimited_body_that_is_reset_is_an_error(backend: Backend, send: Send) -> None:
    backend.handler = raw(b"HTTP/1.1 200 OK\r\n\r\nabc", "rst")
    assert (await send().over()).verdict == ("BODY", "lost", True, False)
