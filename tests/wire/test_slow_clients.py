"""Clients that take their time (O1): dismissed at the deadline, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.tools.client import Client, call, post
from tests.wire.rig import Rig

CONFIG = {"limits": {"head_timeout": "500ms"}}

HALF_HEAD = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
SLOW = {
    "silent": b"",
    "empty lines": b"\r\n" * 32 * 1024,
    "half-sent head": HALF_HEAD,
    "head without body": post(b"", framing="Content-Length: 1000"),
    "half-sent body": post(b'{"jsonrpc"', framing="Content-Length: 1000"),
    "half-sent chunk": post(b"ff\r\n{", framing="Transfer-Encoding: chunked"),
}


async def dismissed(client: Client) -> None:
    """Wait until the proxy has ended the connection, with or without a 408."""
    with contextlib.suppress(EOFError):
        answer = await client.answer()
        assert (answer.status, answer.reason, answer.says_close) == (408, "request_timeout", True)
    await client.closed()


@pytest.mark.parametrize("start", SLOW.values(), ids=SLOW.keys())
async def test_slow_clients_are_dismissed_and_disturb_nobody(rig: Rig, start: bytes) -> None:
    good = await rig.client()
    slow = [await rig.client() for _ in range(70)]
    for client in slow:
        if start:
            await client.send(start)
    waiting = asyncio.gather(*(dismissed(client) for client in slow))
    served = 0
    while not waiting.done():
        assert (await good.ask(post(call(served)))).status == 200
        served += 1
    await waiting

    assert len(rig.taken()) == served


SLOWER = {
    "head": HALF_HEAD,
    "body": post(b"{", framing="Content-Length: 100000"),
    "chunk": post(b"ffff\r\n{", framing="Transfer-Encoding: chunked"),
}


@pytest.mark.parametrize("start", SLOWER.values(), ids=SLOWER.keys())
async def test_a_byte_now_and_then_does_not_keep_a_connection(rig: Rig, start: bytes) -> None:
    """Between two bytes lies a request of somebody else."""
    good = await rig.client()
    slow = [await rig.client() for _ in range(20)]
    for client in slow:
        await client.send(start)
    waiting = asyncio.gather(*(dismissed(client) for client in slow))
    while not waiting.done():
        assert (await good.ask(post(call()))).status == 200
        for client in slow:
            with contextlib.suppress(ConnectionError):
                await client.send(b"x")
    await waiting
    rig.taken()
