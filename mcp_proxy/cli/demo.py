"""``mcp-proxy demo``: two real servers, the proxy in front, the official client, then yours.

Rules of this file: it reads as the story of the demo. The proxy is started by the very command
that is shown on the screen. The SDK is needed here and nowhere else in the package, so it is
imported only once its absence has been ruled out.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from mcp_proxy.cli.demo_processes import (
    Child,
    DemoError,
    PortTaken,
    accepts,
    listening_socket,
    run,
    usable_port,
)

if TYPE_CHECKING:
    from mcp_proxy.cli.demo_show import Screen

REPLICAS = ("lisbon", "oslo")
LISTEN = "127.0.0.1:8080"
ADMIN = "127.0.0.1:9901"
_STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(short_help="Two example servers, the proxy in front, and a client that shows what it does.")
@click.option("--listen", metavar="HOST:PORT", help=f"The proxy's address. Default {LISTEN}, or a free port.")
@click.option("--admin", metavar="HOST:PORT", help=f"Its admin address. Default {ADMIN}, or a free port.")
@click.option("--once", is_flag=True, help="Exit after the show instead of staying up.")
def demo(listen: str | None, admin: str | None, once: bool) -> None:
    """Start two replicas of a real MCP server and the proxy in front of them, and let the
    official client show a session that sticks, progress as it arrives, and a stateless call.
    Then stay up until Ctrl-C."""
    try:
        from mcp_proxy.cli.demo_show import Screen
    except ImportError as missing:
        click.echo(
            f"mcp-proxy demo needs the official MCP SDK ({missing}): "
            "install it with  pip install 'mcp-reverse-proxy[demo]'",
            err=True,
        )
        raise SystemExit(2) from None
    screen = Screen(color=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    try:
        addresses = _address(screen, listen, LISTEN), _address(screen, admin, ADMIN)
        asyncio.run(_until_stopped(_story(screen, *addresses, once=once)))
    except PortTaken as taken:
        click.echo(f"mcp-proxy demo: {taken}", err=True)
        raise SystemExit(3) from None
    except DemoError as failed:
        click.echo(f"mcp-proxy demo: {failed}", err=True)
        raise SystemExit(1) from None


def _address(screen: Screen, asked: str | None, default: str) -> str:
    """``host:port`` to listen on. An address that was asked for is used or refused; the default
    gives way to a free port."""
    host, _, port = (asked or default).rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.UsageError(f"not an address: {asked}; write HOST:PORT")
    try:
        return f"{host}:{usable_port(host.strip('[]'), int(port))}"
    except PortTaken:
        if asked:
            raise
        free = f"{host}:{usable_port(host, 0)}"
        screen.say(f"{default} is in use, taking {free}")
        return free


async def _until_stopped(story: Coroutine[object, object, None]) -> None:
    """Runs the story; a signal ends it the orderly way, and that is no failure."""
    task = asyncio.ensure_future(story)
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:  # Impatience must not interrupt the clean-up.
            stopping = True
            task.cancel()

    for number in _STOPPED_BY:
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise
        click.echo("\nstopped")


async def _story(screen: Screen, listen: str, admin: str, *, once: bool) -> None:
    screen.title("mcp-proxy demo")
    url = f"http://{listen}/mcp"
    async with AsyncExitStack() as stack:
        replicas = [await _start_replica(stack, screen, name) for name in REPLICAS]
        proxy = await _start_proxy(stack, screen, [backend for _, backend in replicas], listen, admin)
        await _perform(url, screen, [child for child, _ in replicas] + [proxy])
        if not once:
            _invite(screen, url, admin)
            await _stay(screen, [child for child, _ in replicas], proxy)


async def _start_replica(stack: AsyncExitStack, screen: Screen, name: str) -> tuple[Child, str]:
    with listening_socket() as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        fd = listening.fileno()
        arguments = ("--replica", name, "--fd", str(fd))
        child = await stack.enter_async_context(
            run(f"replica {name}", "mcp_proxy.cli.demo_server", *arguments, fd=fd)
        )
    screen.fact(child.name, url)
    return child, url


async def _start_proxy(
    stack: AsyncExitStack, screen: Screen, backends: list[str], listen: str, admin: str
) -> Child:
    arguments = ("serve", *backends, "--listen", listen, "--admin", admin)
    screen.fact("proxy", f"mcp-proxy {shlex.join(arguments)}")
    child = await stack.enter_async_context(run("the proxy", "mcp_proxy", *arguments))
    host, _, port = listen.rpartition(":")
    await accepts(child, host.strip("[]"), int(port))
    return child


async def _perform(url: str, screen: Screen, children: list[Child]) -> None:
    """The show. What goes wrong in it is told in a sentence, with the last words of who has died."""
    from mcp_proxy.cli.demo_show import show

    try:
        await show(url, screen)
    except Exception as error:
        dead = [child for child in children if child.process.returncode is not None]
        words = "".join(f"\n{child.name} had ended:\n{child.last_words()}" for child in dead)
        raise DemoError(f"{_cause(error)}{words}") from error


def _cause(error: BaseException) -> str:
    """The SDK's client wraps what happens inside of it in exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, DemoError) else f"the show failed: {error!r}"


def _invite(screen: Screen, url: str, admin: str) -> None:
    screen.title("Everything stays up. Your turn:")
    screen.fact("MCP endpoint", url)
    screen.fact("status", f"http://{admin}/status.json")
    screen.fact("metrics", f"http://{admin}/metrics")
    screen.say()
    screen.say(f"  {_curl(url)}")
    screen.say()
    screen.say("Ctrl-C stops all of it.")


def _curl(url: str) -> str:
    """One complete call of MCP 2026-07-28; without a handshake, so one line is enough."""
    prefix = "io.modelcontextprotocol"
    meta = {f"{prefix}/protocolVersion": "2026-07-28", f"{prefix}/clientCapabilities": {}}
    params = {"name": "whoami", "arguments": {}, "_meta": meta}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    fields = (
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        "MCP-Protocol-Version: 2026-07-28",
        "Mcp-Method: tools/call",
        "Mcp-Name: whoami",
    )
    words = ["curl", "-sS", "-w", r"\n", url]
    for field in fields:
        words += ["-H", field]
    return shlex.join([*words, "-d", json.dumps(message, separators=(",", ":"))])


async def _stay(screen: Screen, replicas: list[Child], proxy: Child) -> None:
    """Until a signal. A replica may end (somebody wants to see what happens then), the proxy not."""

    async def report(replica: Child) -> None:
        await replica.process.wait()
        screen.say(f"{replica.name} has ended, the proxy goes on with the rest")

    watchers = [asyncio.ensure_future(report(replica)) for replica in replicas]
    try:
        await proxy.process.wait()
        raise DemoError(f"the proxy has ended:\n{proxy.last_words()}")
    finally:
        for watcher in watchers:
            watcher.cancel()
