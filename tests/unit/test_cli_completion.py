"""Shell completion: what is offered, by the commands and by a real bash."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import Result

from mcp_proxy.admin.app import create_admin
from mcp_proxy.cli.main import COMMANDS
from tests.tools import PATIENCE_S
from tests.unit.operated import ONE, SIX, TWO, Operated
from tests.unit.operating import run
from tests.unit.running import serving


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with serving(create_admin(Operated(), None)) as address:
        yield address


async def offered(address: str, line: str) -> list[str]:
    """Values for the last word of ``line``."""
    words = line.split(" ")
    result = await run(
        address, _MCP_PROXY_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
    )
    assert (result.exit_code, result.stderr) == (0, "")
    return [value.partition(",")[2] for value in result.stdout.splitlines() if value]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_a_script_is_printed_for_every_shell(shell: str) -> None:
    result: Result = await run(None, "completion", shell)

    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{shell}_complete" in result.stdout
    assert "_MCP_PROXY_COMPLETE" in result.stdout


async def test_another_shell_is_2() -> None:
    result = await run(None, "completion", "tcsh")

    assert result.exit_code == 2
    assert "bash" in result.stderr


async def test_commands_and_options_are_offered(address: str) -> None:
    assert await offered(address, "mcp-proxy ") == list(COMMANDS)
    assert await offered(address, "mcp-proxy dr") == ["drain"]
    assert "--wait" in await offered(address, "mcp-proxy drain --")
    assert await offered(address, "mcp-proxy sessions e") == ["end", "export"]
    assert await offered(address, "mcp-proxy --ver") == ["--version"]


@pytest.mark.parametrize("line", ["mcp-proxy http://localhost ", "mcp-proxy drain --for "])
async def test_where_there_is_nothing_to_offer_there_is_no_noise(address: str, line: str) -> None:
    assert await offered(address, line) == []


async def test_backends_and_pools_are_those_of_the_running_proxy(address: str) -> None:
    assert await offered(address, "mcp-proxy drain ") == [ONE, TWO, SIX]
    assert await offered(address, "mcp-proxy drain --for 5m http://10.0.0.12") == [TWO]
    assert await offered(address, "mcp-proxy backends --pool w") == ["weather"]
    assert await offered("127.0.0.1:1", f"mcp-proxy drain --admin {address} https") == [SIX]
    assert await offered("127.0.0.1:1", f"mcp-proxy tap --admin {address} --pool ") == ["weather", "other"]


@pytest.mark.parametrize("nowhere", ["127.0.0.1:1", "off", "::::", "http://user:pw@host"])
async def test_without_a_proxy_there_is_silence(nowhere: str) -> None:
    assert await offered(nowhere, "mcp-proxy drain ") == []


async def test_a_proxy_that_wants_a_token_or_does_not_answer_is_silence() -> None:
    async with serving(create_admin(Operated(), "hunter2")) as address:
        assert await offered(address, "mcp-proxy drain ") == []
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody answers
        assert await offered(f"127.0.0.1:{silent.getsockname()[1]}", "mcp-proxy drain ") == []


# --- a real shell -----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("mcp-proxy dr", ["drain"]),
        ("mcp-proxy drain http://10.0.0.1", ["//10.0.0.11:8000/mcp", "//10.0.0.12:8000/mcp"]),
        ("mcp-proxy drain http://10.0.0.11:", ["8000/mcp"]),
        ("mcp-proxy drain --wait ", [ONE, TWO, SIX]),
    ],
)
async def test_bash_completes_words_with_colons(
    address: str, tmp_path: Path, line: str, replies: list[str]
) -> None:
    program = tmp_path / "mcp-proxy"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mcp_proxy "$@"\n')
    program.chmod(0o755)
    script = f"""
        source <(mcp-proxy completion bash)
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        _mcp_proxy_completion mcp-proxy
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environ = os.environ | {"MCP_PROXY_ADMIN": address, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = await asyncio.create_subprocess_exec(
        *("bash", "--norc", "-c", script),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()

    assert (out.decode().split(), err) == (replies, b"")
