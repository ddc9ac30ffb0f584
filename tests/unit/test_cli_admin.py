"""How commands find the admin listener, and what they say when it is not what they find."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mcp_proxy.admin.app import create_admin
from mcp_proxy.cli.admin_client import base_url
from mcp_proxy.errors import StoreError
from tests.tools import PATIENCE_S
from tests.unit.registered import Registered
from tests.unit.running import Running, serving

TOKEN = "correct horse battery staple"


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    view = Registered()
    async with serving(create_admin(view, None)) as address:
        yield Running(view, address)


@pytest.fixture
def environ(running: Running) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCP_PROXY_")}
    return kept | {"MCP_PROXY_ADMIN": running.address}


async def test_a_token_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    view = Registered()
    (tmp_path / "token").write_text(TOKEN + "\n")
    async with serving(create_admin(view, TOKEN)) as address:
        running = Running(view, address)
        results = [
            await running.run("list", MCP_PROXY_ADMIN_TOKEN=TOKEN),
            await running.run("list", "--token", f"file:{tmp_path / 'token'}"),
            await running.run("list", "--token", "env:OTHER", OTHER=TOKEN),
        ]
        refused = [await running.run("list"), await running.run("list", MCP_PROXY_ADMIN_TOKEN="wrong")]

    assert [result.exit_code for result in results] == [0, 0, 0]
    assert "wants a token" in refused[0].stderr
    assert "wants another token" in refused[1].stderr
    for result in refused:
        assert result.exit_code == 1
        assert "MCP_PROXY_ADMIN_TOKEN" in result.stderr
        assert "wrong" not in result.stderr


async def test_the_flag_wins_over_the_variable(running: Running) -> None:
    result = await running.run("list", "--admin", f"http://{running.address}/", MCP_PROXY_ADMIN="127.0.0.1:1")

    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:9901", "http://127.0.0.1:9901"),
        ("0.0.0.0:9901", "http://127.0.0.1:9901"),
        ("[::]:9901", "http://[::1]:9901"),
        ("[::1]:1", "http://[::1]:1"),
        ("admin.example", "http://admin.example"),
        ("https://ops.example/proxy/", "https://ops.example/proxy"),
    ],
)
def test_an_address_is_a_url(text: str, url: str) -> None:
    assert base_url(text) == url


async def test_nobody_there_is_1_with_cause_and_cure(running: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

    result = await running.run("list", "--admin", f"127.0.0.1:{port}")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "(Connection refused): is the proxy running" in result.stderr
    assert "--admin" in result.stderr


ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "a page": (200, {"content-type": "text/html"}, b"<html>\x1b[31m"),
    "a redirect": (302, {"location": "http://127.0.0.1:1/"}, b""),
    "not found": (404, {}, b"no"),
    "another document": (200, {"content-type": "application/json"}, b'{"sessions":[{"name":1}],"cursor":""}'),
    "an odd refusal": (500, {}, b'{"error":[]}'),
    "no end": (200, {}, b" " * 9_000_000),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("command", [["list"], ["show", "f" * 40], ["export"]], ids=lambda args: args[0])
async def test_somebody_else_there_is_1_with_a_sentence(
    answer: tuple[int, dict[str, str], bytes], command: list[str]
) -> None:
    status, headers, body = answer

    async def stranger(scope: Any, receive: Any, send: Any) -> None:
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": body})

    async with serving(stranger) as address:
        result = await Running(Registered(), address).run(*command)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "check the address" in result.stderr
    assert "\x1b" not in result.output
    assert "Traceback" not in result.output


async def test_a_refusal_is_shown_without_what_a_terminal_would_obey(running: Running) -> None:
    running.view.failure = StoreError("down \x1b[31m")

    result = await running.run("list")

    assert result.exit_code == 1
    assert "store_unavailable" in result.stderr
    assert "\x1b" not in result.stderr


async def test_a_list_that_does_not_go_on_is_given_up() -> None:
    class Stuck(Registered):
        async def sessions_page(self, cursor: str, limit: int) -> Any:
            return (await super().sessions_page("", limit))._replace(cursor="same")

    view = Stuck()
    async with serving(create_admin(view, None)) as address:
        result = await Running(view, address).run("list")

    assert result.exit_code == 1
    assert "same page twice" in result.stderr


@pytest.mark.parametrize("args", ["list", "list --json", "export"])
async def test_a_reader_that_has_seen_enough_ends_it_quietly(
    running: Running, environ: dict[str, str], args: str
) -> None:
    running.view.fill(5000)
    script = f"'{sys.executable}' -m mcp_proxy sessions {args} | head -n 1"
    process = await asyncio.create_subprocess_shell(
        script, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()

    assert len(out.splitlines()) == 1
    assert err == b""
