"""The portable door spoken to directly: scopes, and messages that servers rarely send."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from mcp_proxy.downstream.asgi import AsgiDoor
from mcp_proxy.errors import StartupError
from mcp_proxy.wire import Handler
from tests.tools import PATIENCE_S
from tests.unit.door_asgi.direct import Messages, Server
from tests.unit.doorway import Conversation, ScriptedHandler, Served
from tests.unit.fakes import settle


async def test_peer_and_scheme_come_from_the_scope(door: AsgiDoor, handler: ScriptedHandler) -> None:
    await Server().run(door)
    await Server(client=None).run(door)
    assert [(served.request.peer, served.request.scheme) for served in handler.served] == [
        ("192.0.2.1", "https"),
        ("", "https"),
    ]


async def test_trailers_that_a_server_appends_later_do_not_reach_the_request(
    door: AsgiDoor, handler: ScriptedHandler
) -> None:
    server = Server()

    def respond(served: Served) -> None:
        server.scope["headers"].append((b"authorization", b"forged"))
        served.reply.answer(200, [], b"")

    handler.respond = respond
    await server.run(door)
    assert handler.served[0].request.headers == [(b"host", b"a")]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([(b"content-length", b"3")], b"{}"),
        ([(b"content-length", b"+2")], b"{}"),
        ([(b"content-length", b"2"), (b"content-length", b"2")], b"{}"),
        ([], b"{}"),
    ],
    ids=["shorter", "signed", "twice", "unannounced"],
)
async def test_a_body_that_is_not_as_long_as_announced_is_refused(
    door: AsgiDoor, handler: ScriptedHandler, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    sent = await Server({"type": "http.request", "body": body}, headers=headers).run(door)
    assert sent[0]["status"] == 400
    assert handler.reasons == ["bad_request"]
    assert handler.served == []


async def test_http_2_announces_no_length_and_gets_no_connection_header(
    door: AsgiDoor, handler: ScriptedHandler
) -> None:
    parts: Messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.request", "body": b"}"},
    ]
    sent = await Server(*parts, http_version="2", headers=[(b"host", b"a")]).run(door)
    assert handler.served[0].body == b"{}"
    assert sent[0]["headers"] == [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    large = {"type": "http.request", "body": b"x" * 200_000, "more_body": True}
    sent = await Server(large, http_version="2", headers=[(b"host", b"a")]).run(door)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") not in sent[0]["headers"]


@pytest.mark.parametrize("at", [0, 1], ids=["before the body", "within the body"])
async def test_a_client_that_left_early_gets_nothing(
    door: AsgiDoor, handler: ScriptedHandler, at: int
) -> None:
    parts: Messages = [{"type": "http.request", "body": b"{", "more_body": True}]
    server = Server(*parts[:at], {"type": "http.disconnect"})
    assert await server.run(door) == []
    assert handler.served == []
    assert handler.refused == []


async def test_pieces_of_one_iteration_leave_as_one(door: AsgiDoor, handler: ScriptedHandler) -> None:
    def respond(served: Served) -> None:
        served.reply.start(200, [], None)
        for piece in (b"a", b"b", b"c"):
            served.reply.write(piece)
        served.reply.end()

    handler.respond = respond
    sent = await Server().run(door)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1] == {"type": "http.response.body", "body": b"abc", "more_body": False}


@pytest.mark.parametrize("waits", [True, False], ids=["an answer that came later", "an answer at once"])
async def test_a_reply_that_is_kept_keeps_nothing_of_its_request(
    door: AsgiDoor, handler: ScriptedHandler, waits: bool
) -> None:
    """Exchanges are recorded in batches, so replies outlive their requests."""
    server = Server()
    kept: list[Served] = []

    def respond(served: Served) -> None:
        kept.append(served)
        answer = partial(served.reply.answer, 200, [], b"")
        if waits:
            asyncio.get_running_loop().call_soon(answer)
        else:
            answer()

    handler.respond = respond
    await server.run(door)
    request, conversation = weakref.ref(server), weakref.ref(kept[0].conversation)
    kept[0].conversation = Conversation()
    handler.served.clear()
    gc.disable()
    try:
        del server
        assert request() is None
        assert conversation() is None
    finally:
        gc.enable()


def _stream(served: Served) -> None:
    served.reply.start(200, [], None)


async def test_a_send_that_fails_is_a_client_that_left(door: AsgiDoor, handler: ScriptedHandler) -> None:
    server = Server()
    server.send_error = OSError("gone")  # ASGI 2.4
    handler.respond = _stream
    await server.run(door)
    assert handler.served[0].conversation.events == ["disconnect"]


async def test_a_receive_that_fails_is_a_client_that_left(door: AsgiDoor, handler: ScriptedHandler) -> None:
    server = Server()
    handler.respond = _stream
    original = server.receive

    async def receive() -> dict[str, Any]:
        if not server.received:
            raise RuntimeError("no more")
        return await original()

    async with asyncio.timeout(PATIENCE_S):
        await door(server.scope, receive, server.send)
    assert "disconnect" in handler.served[0].conversation.events


async def test_a_cancelled_app_ends_the_exchange(door: AsgiDoor, handler: ScriptedHandler) -> None:
    started = asyncio.Event()

    def respond(served: Served) -> None:
        _stream(served)
        started.set()

    handler.respond = respond
    running = asyncio.create_task(Server().run(door))
    await started.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert handler.served[0].conversation.events == ["expire", "disconnect"]


async def test_a_cancelled_app_still_sends_the_end_of_its_answer(
    door: AsgiDoor, handler: ScriptedHandler
) -> None:
    """A server whose patience is over cancels; a stream that stays can end cleanly all the same."""
    started = asyncio.Event()

    def respond(served: Served) -> None:
        _stream(served)
        served.conversation.expire = served.reply.end  # type: ignore[method-assign]
        started.set()

    handler.respond = respond
    server = Server()
    running = asyncio.create_task(server.run(door))
    await started.wait()
    await settle()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert server.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_without_a_lifespan_the_first_request_starts_the_gateway(
    door: AsgiDoor, calls: list[str]
) -> None:
    await Server().run(door)
    await Server().run(door)
    assert calls == ["startup"]


def _lifespan() -> Server:
    return Server({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}, type="lifespan")


async def test_the_lifespan_reports_what_went_wrong(handler: ScriptedHandler) -> None:
    async def fail() -> None:
        raise StartupError("the certificate cannot be read")

    async def succeed() -> None:
        pass

    def door(start: Callable[..., Any], stop: Callable[..., Any]) -> AsgiDoor:
        return AsgiDoor(cast(Handler, handler), on_startup=start, on_shutdown=stop)

    message = "the certificate cannot be read"
    assert await _lifespan().run(door(fail, succeed)) == [
        {"type": "lifespan.startup.failed", "message": message}
    ]
    assert await _lifespan().run(door(succeed, fail)) == [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.failed", "message": message},
    ]


async def test_an_unknown_scope_is_not_served(door: AsgiDoor) -> None:
    with pytest.raises(NotImplementedError):
        await Server(type="carrier-pigeon").run(door)
