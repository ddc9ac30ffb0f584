"""The application log of a running proxy: how much it says, in which form, and in every process.

Rules of this file: a reload is what makes every process say something at debug.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_proxy.tasks import Tasks
from mcp_proxy.workers import calls
from mcp_proxy.workers.link import WorkerError, WorkerLink
from tests.tools import PATIENCE_S
from tests.tools.backend import Backend
from tests.tools.client import Answer, Client, call, post
from tests.tools.mcp_backend import json_answer
from tests.tools.proxy import ROOT, ProxyProcess, launch
from tests.wire.reloading import Site, pools, site
from tests.wire.team import team

JSON_LOG = {"telemetry": {"log": "json"}}
IN_FORCE = "configuration: in force in this process"


async def put(proxy: ProxyProcess, body: bytes) -> Answer:
    client = await Client.connect(proxy.admin_port)
    try:
        request = post(body, "Connection: close", target="/log-level")
        return await client.ask(request.replace(b"POST", b"PUT", 1), "PUT")
    finally:
        client.close()


async def level(proxy: ProxyProcess) -> str:
    word: str = (await proxy.admin("/log-level")).json["level"]
    return word


async def set_level(proxy: ProxyProcess, word: str) -> None:
    assert (await put(proxy, json.dumps({"level": word}).encode())).status == 200
    assert await level(proxy) == word


def lines_of(text: str) -> list[dict[str, Any]]:
    """Every line must be one."""
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


async def reread(running: Site, start: int) -> str:
    """What is said when the configuration is read again, unchanged."""
    before = await running.reloads()
    running.hang_up()
    await running.reloaded(before + 1)
    return running.log(start)


async def test_the_level_of_a_running_proxy_changes_and_changes_back(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, site(pools([backend]), tmp_path) as running:
        proxy = running.proxy
        assert await level(proxy) == "info"
        assert IN_FORCE not in await reread(running, 0)
        await set_level(proxy, "debug")
        assert "log level: changed from info to debug by 127.0.0.1" in running.log()
        assert IN_FORCE in await reread(running, 0)
        await set_level(proxy, "critical")
        assert "log level: changed from debug to critical" in running.log()
        at = proxy.log_size()
        assert await reread(running, at) == ""


async def test_what_is_no_level_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, site(pools([backend]), tmp_path) as running:
        for body in (b'{"level": "loud"}', b"debug", b""):
            answer = await put(running.proxy, body)
            assert (answer.status, answer.json["error"]["reason"]) == (400, "bad_body")
            assert "critical, error, warning, info, debug" in answer.json["error"]["detail"]
        assert await level(running.proxy) == "info"


async def test_the_command_changes_the_level(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, launch(pools([backend]), tmp_path) as proxy:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_proxy", "log-level", "debug"),
            env=os.environ | {"MCP_PROXY_ADMIN": f"127.0.0.1:{proxy.admin_port}"},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await process.communicate()
        assert (process.returncode, out) == (0, b"debug\n")
        assert await level(proxy) == "debug"


async def test_the_level_is_that_of_every_worker_also_of_those_to_come(tmp_path: Path) -> None:
    async with team(tmp_path, **JSON_LOG) as crew:
        running = Site(crew.proxy, tmp_path / "proxy.yaml")

        async def heard() -> set[int]:
            said = lines_of(await reread(running, crew.proxy.log_size()))
            return {line["pid"] for line in said if line["msg"] == IN_FORCE}

        first, second = await crew.pids()
        assert await heard() == set()
        await set_level(crew.proxy, "debug")
        assert await heard() == {first, second}
        os.kill(first, signal.SIGKILL)
        await crew.replaced(first)
        assert await heard() == set(await crew.pids())
        await set_level(crew.proxy, "info")
        assert await heard() == set()
        changes = [line["msg"] for line in lines_of(running.log()) if "log level" in line["msg"]]
        assert changes == [
            "log level: changed from info to debug by 127.0.0.1",
            "log level: changed from debug to info by 127.0.0.1",
        ]


# --- the form ------------------------------------------------------------------------------------------


async def test_all_that_is_said_from_the_start_to_the_end_is_json(tmp_path: Path) -> None:
    gone = "http://127.0.0.1:1/mcp"
    async with Backend(json_answer()) as backend:
        literal = pools([backend, gone], credentials={"authorization": "Bearer literal"})  # a warning
        async with site({**literal, **JSON_LOG}, tmp_path) as running:
            await set_level(running.proxy, "debug")
            for _ in range(2):
                client = await running.client()
                await client.ask(post(call(1)))
            await reread(running, 0)
            await running.refused("pools: {")
            client = await Client.connect(running.proxy.admin_port)
            await client.send(b"\x16\x03\x01 no HTTP\r\n\r\n")
            assert (await client.answer()).status == 400
            client.close()
        lines = lines_of(running.log())
    assert {line["pid"] for line in lines} == {running.proxy.pid}
    assert {"warning", "info", "debug", "error"} <= {line["level"] for line in lines}
    said = [line["msg"] for line in lines]
    warned = [line["msg"] for line in lines if line["level"] == "warning"]
    assert any(text.startswith("configuration: ") for text in warned)
    assert any(f"listening on 127.0.0.1:{running.proxy.port}, admin 127.0.0.1" in text for text in said)
    assert [line["backend"] for line in lines if " is down: " in line["msg"]] == [gone]


def _command(tmp_path: Path, config: dict[str, Any]) -> list[str]:
    (tmp_path / "proxy.yaml").write_text(json.dumps(config))
    return [sys.executable, "-m", "mcp_proxy", "serve", "--config", str(tmp_path / "proxy.yaml")]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("form", ["json", "text"])
async def test_why_it_could_not_start_is_said_in_the_same_form(
    tmp_path: Path, form: str, workers: int
) -> None:
    async with Backend(json_answer()) as backend:
        taken = f"127.0.0.1:{backend.port}"
        config = {
            **pools([backend]),
            "listen": taken,
            "admin": "off",
            "telemetry": {"log": form},
            "workers": workers,
            "sessions": {"store": "signed", "keys": ["a secret of at least 32 characters"]},
        }
        code, said = await _said(_command(tmp_path, config))
    assert code == 3
    if form == "json":
        *_, last = lines_of(said)
        assert last["level"] == "critical"
        assert last["msg"].startswith(f"could not start: cannot listen on {taken}: ")
    else:
        assert f"mcp-proxy could not start: cannot listen on {taken}: " in said


async def test_a_worker_speaks_in_this_form_before_it_is_told_anything() -> None:
    ours, theirs = socket.socketpair()
    tasks = Tasks()
    with socket.socket() as listening, theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_proxy.workers"),
            *(str(listening.fileno()), str(theirs.fileno()), "json"),
            pass_fds=(listening.fileno(), theirs.fileno()),
            stderr=asyncio.subprocess.PIPE,
        )
    link = await WorkerLink.over(ours, tasks)
    with pytest.raises(WorkerError):
        await link.ask(calls.SERVE, b"no setup", wait_s=PATIENCE_S)
    link.close()
    async with asyncio.timeout(PATIENCE_S):
        _, err = await process.communicate()
    await tasks.aclose()
    (line,) = lines_of(err.decode())
    assert (line["pid"], line["msg"], line["error"]) == (
        process.pid,
        "call serve failed",
        "_pickle.UnpicklingError",
    )


async def test_a_configuration_that_cannot_be_read_is_told_in_sentences(tmp_path: Path) -> None:
    code, said = await _said(_command(tmp_path, {"telemetry": {"log": "jsn"}}))
    assert code == 2
    assert "telemetry.log" in said
    assert "{" not in said


async def _said(command: list[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        _, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, err.decode()
