"""``mcp-proxy sessions`` and a running proxy: what operators do to sessions, clients notice."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, get, post
from tests.tools.mcp_backend import INITIALIZE, McpServer
from tests.tools.proxy import ProxyProcess, launch

SESSIONS = 12


@pytest.fixture
async def backends() -> AsyncIterator[list[Backend]]:
    """Two session servers that outlive the proxy."""
    async with Backend(McpServer("oslo")) as oslo, Backend(McpServer("lisbon")) as lisbon:
        yield [oslo, lisbon]


async def operate(proxy: ProxyProcess, *args: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    """``mcp-proxy sessions``: exit code and output."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MCP_PROXY_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mcp_proxy", "sessions", *args),
        env=environ | {"MCP_PROXY_ADMIN": f"127.0.0.1:{proxy.admin_port}"},
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def ask(proxy: ProxyProcess, request: bytes, method: str = "POST") -> Answer:
    client = await Client.connect(proxy.port)
    try:
        return await client.ask(request, method)
    finally:
        client.close()


async def begin(proxy: ProxyProcess) -> str:
    """The id of a new session."""
    answer = await ask(proxy, post(INITIALIZE))
    assert answer.status == 200
    return (answer.head.one("mcp-session-id") or b"").decode()


def config(backends: list[Backend]) -> dict[str, object]:
    pool = {"backends": [backend.url for backend in backends]}
    return {"pools": {"tools": pool}, "routes": [{"path": "/mcp", "pool": "tools"}]}


async def test_sessions_are_listed_shown_and_ended(backends: list[Backend], tmp_path: Path) -> None:
    async with launch(config(backends), tmp_path) as proxy:
        ids = [await begin(proxy) for _ in range(SESSIONS)]

        code, listed, err = await operate(proxy, "list", "--json")
        sessions = json.loads(listed)["sessions"]
        assert (code, err) == (0, "")
        assert len(sessions) == SESSIONS
        assert {session["pool"] for session in sessions} == {"tools"}
        assert not any(each in listed for each in ids)

        code, shown, _ = await operate(proxy, "show", "--json", "--id-file", "-", stdin=ids[0].encode())
        session = json.loads(shown)
        owner = next(backend for backend in backends if backend.url == session["backend"])
        assert code == 0
        assert session["name"] in [each["name"] for each in sessions]
        assert isinstance(owner.handler, McpServer)
        assert ids[0] in owner.handler.sessions

        assert await operate(proxy, "end", session["name"]) == (0, f"ended {session['name']}\n", "")
        answer = await ask(proxy, post(call(2), f"Mcp-Session-Id: {ids[0]}"))
        assert (answer.status, answer.reason) == (404, "session_not_found")
        code, _, err = await operate(proxy, "end", session["name"])
        assert code == 1
        assert "no such session" in err

        assert (await ask(proxy, post(call(3), f"Mcp-Session-Id: {ids[1]}"))).status == 200
        assert await proxy.metric("mcp_proxy_sessions", pool="tools") == SESSIONS - 1
        assert proxy.traceback() == ""
        assert not any(each in proxy.output for each in ids)


async def test_a_backup_carries_sessions_over_a_restart(backends: list[Backend], tmp_path: Path) -> None:
    file = tmp_path / "backup"
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with launch(config(backends), tmp_path / "first") as proxy:
        ids = [await begin(proxy) for _ in range(SESSIONS)]
        ended, kept = ids[0], ids[1:]
        code, out, _ = await operate(proxy, "export", str(file))
        assert (code, out) == (0, f"{SESSIONS} sessions in {file}\n")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert not any(each.encode() in file.read_bytes() for each in ids)

        # What ended meanwhile stays so, also for a backup that is older.
        assert (await ask(proxy, get(f"Mcp-Session-Id: {ended}", method="DELETE"), "DELETE")).status == 200
        code, out, _ = await operate(proxy, "import", str(file))
        assert out.startswith(f"0 sessions restored, {SESSIONS} skipped")
        assert (await ask(proxy, post(call(2), f"Mcp-Session-Id: {ended}"))).status == 404

    for backend in backends:
        backend.take()
    async with launch(config(backends), tmp_path / "second") as proxy:
        assert (await ask(proxy, post(call(2), f"Mcp-Session-Id: {kept[0]}"))).status == 404

        assert await operate(proxy, "import", str(file)) == (0, f"{SESSIONS} sessions restored\n", "")

        assert await proxy.metric("mcp_proxy_sessions", pool="tools") == SESSIONS
        for number, each in enumerate(kept):
            answer = await ask(proxy, post(call(number), f"Mcp-Session-Id: {each}"))
            assert (answer.status, answer.json["id"]) == (200, number)
        # Its backend knows better than the backup.
        assert (await ask(proxy, post(call(2), f"Mcp-Session-Id: {ended}"))).status == 404
        status = await proxy.status()
        assert sum(backend["sessions"] for backend in status["pools"]["tools"]["backends"]) == len(kept)
        assert proxy.traceback() == ""
