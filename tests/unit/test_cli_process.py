"""The command as a process of its own: what it imports, and the codes it ends with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import create_server, socket

import pytest

HEAVY = ("pydantic", "yaml", "uvicorn", "starlette", "httpx2", "msgspec", "asyncio", "mcp_proxy.config")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MCP_PROXY_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environ, check=False)


def mcp_proxy(*args: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "mcp_proxy", *args)


@pytest.fixture
def taken() -> Iterator[socket]:
    """A port that somebody else listens on."""
    with create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["serve", "--help"],
        ["check", "--help"],
        ["version"],
        ["sessions", "--help"],
        ["sessions", "export", "--help"],
    ],
)
def test_help_and_version_import_nothing_heavy(args: list[str]) -> None:
    program = (
        "import sys\n"
        "from mcp_proxy.cli.main import commands\n"
        f"commands({args!r}, prog_name='mcp-proxy', standalone_mode=False)\n"
        f"print('imported:', [name for name in {HEAVY!r} if name in sys.modules])"
    )

    assert "imported: []" in run(sys.executable, "-c", program).stdout


def test_0_when_all_is_well() -> None:
    result = mcp_proxy("version")

    assert (result.returncode, result.stderr) == (0, "")


def test_2_for_bad_usage_and_bad_configuration(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text("pools: {}\n")

    assert mcp_proxy("nonsense").returncode == 2
    assert mcp_proxy("check", "--config", str(file)).returncode == 2
    assert mcp_proxy("serve", "--config", str(file)).returncode == 2
    assert mcp_proxy("localhost:3000").returncode == 2


def test_3_with_one_sentence_when_the_port_is_taken(taken: socket) -> None:
    port = taken.getsockname()[1]

    result = mcp_proxy("http://127.0.0.1:9/mcp", "--listen", f"127.0.0.1:{port}", "--admin", "off")

    assert result.returncode == 3
    assert str(port) in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_process_1_of_a_container_ends_at_sigterm_before_it_serves(tmp_path: Path) -> None:
    """The kernel gives process 1 no signal that it does not handle. It reads its configuration from a pipe,
    so it is certainly not further than that."""
    pipe = tmp_path / "proxy.yaml"
    os.mkfifo(pipe)
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    command = [*unshare, sys.executable, "-m", "mcp_proxy", "serve", "--config", str(pipe)]
    with subprocess.Popen(command) as process:
        try:
            with pipe.open("w"):
                first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                os.kill(int(first), signal.SIGTERM)
                assert process.wait(30) == 0
        finally:
            process.kill()
