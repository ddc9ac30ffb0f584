"""What ``mcp-proxy demo`` shows: the official client, three scenes, every claim checked.

Rules of this file: the client is the SDK's own and knows only the address of the proxy. A scene
that does not turn out as announced raises DemoError; nothing is printed as shown that was not.
"""

from __future__ import annotations

import logging
import time
from contextlib import AsyncExitStack

import click
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from mcp_proxy.cli.demo_processes import DemoError

MODERN = "2026-07-28"
_ROUNDS = 3
_SLICES = 5


class Screen:
    """The terminal. Colours only if ``color``; always plain enough to be piped."""

    def __init__(self, *, color: bool) -> None:
        self._color = color

    def say(self, text: str = "") -> None:
        click.echo(text, color=self._color)

    def title(self, text: str) -> None:
        self.say()
        self.say(click.style(text, bold=True))

    def fact(self, name: str, value: str) -> None:
        self.say(f"  {click.style(f'{name:<14}', fg='cyan')} {value}")

    def proven(self, text: str) -> None:
        self.say(f"  {click.style('ok', fg='green', bold=True)}  {text}")


async def show(url: str, screen: Screen) -> None:
    """All scenes against the MCP endpoint at ``url``. Raises DemoError."""
    # The SDK logs, with a traceback, when it is interrupted, and what it fails with it raises, too.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    await _sticky(url, screen)
    await _progress(url, screen)
    await _stateless(url, screen)


def _client(stack: AsyncExitStack, url: str, mode: str) -> Client:
    # Loopback must not take the way out through an HTTP proxy of the environment.
    http = httpx2.AsyncClient(trust_env=False, timeout=httpx2.Timeout(30))
    stack.push_async_callback(http.aclose)
    return Client(streamable_http_client(url, http_client=http), mode=mode)


def _answer(result: CallToolResult) -> dict[str, object]:
    answer: dict[str, object] | None = result.structured_content
    if result.is_error or answer is None:
        raise DemoError(f"the tool failed: {result.content}")
    return answer


async def _sticky(url: str, screen: Screen) -> None:
    screen.title("1  A session stays with the replica that holds its state")
    owners: dict[str, object] = {}
    async with AsyncExitStack() as stack:
        sessions = {
            name: await stack.enter_async_context(_client(stack, url, "legacy")) for name in ("a", "b")
        }
        for visit in range(1, _ROUNDS + 1):
            for name, client in sessions.items():
                answer = _answer(await client.call_tool("whoami"))
                replica = answer["replica"]
                screen.fact(f"session {name}", f"whoami -> {replica}, visit {answer['visit']}")
                if owners.setdefault(name, replica) != replica or answer["visit"] != visit:
                    raise DemoError(f"session {name} lost its replica: {owners[name]} became {replica}")
    if owners["a"] == owners["b"]:
        raise DemoError("both sessions landed on the same replica")
    screen.proven("two sessions, two replicas, and each kept its own count")


async def _progress(url: str, screen: Screen) -> None:
    screen.title("2  Progress passes the moment it is sent, while the tool still runs")
    began = time.monotonic()
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        screen.fact(f"+{time.monotonic() - began:.1f} s", f"{progress:.0f}/{total or 0:.0f}  {message}")

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(stack, url, "legacy"))
        began = time.monotonic()
        result = await client.call_tool("bake", {"slices": _SLICES}, progress_callback=on_progress)
        screen.fact(f"+{time.monotonic() - began:.1f} s", f"{_answer(result)['result']}")
    if len(seen) != _SLICES:
        raise DemoError(f"{_SLICES} progress events were sent, {len(seen)} arrived")
    screen.proven(f"{_SLICES} server-sent events, each on its own")


async def _stateless(url: str, screen: Screen) -> None:
    screen.title(f"3  MCP {MODERN}: no handshake, no session, any replica")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(_client(stack, url, "auto"))
        screen.fact("discover", f"the servers speak {client.protocol_version}")
        if client.protocol_version != MODERN:
            raise DemoError(f"the client fell back to {client.protocol_version}")
        for _ in range(2):
            answer = _answer(await client.call_tool("whoami"))
            screen.fact("stateless call", f"whoami -> {answer['replica']}, no session")
            if answer["visit"] is not None:
                raise DemoError("a stateless call carried a session")
    screen.proven("every request was self-contained")
