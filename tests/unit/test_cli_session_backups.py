"""``mcp-proxy sessions export`` and ``import``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mcp_proxy.admin.app import create_admin
from mcp_proxy.errors import StoreError
from tests.tools import PATIENCE_S
from tests.unit.registered import Registered
from tests.unit.running import KEY, MOVED, Running, serving


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    view = Registered()
    async with serving(create_admin(view, None)) as address:
        yield Running(view, address)


@pytest.fixture
def environ(running: Running) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCP_PROXY_")}
    return kept | {"MCP_PROXY_ADMIN": running.address}


async def test_a_backup_in_a_file_is_for_its_owner_only_and_can_be_restored(
    running: Running, tmp_path: Path
) -> None:
    names = running.view.fill(1200)
    running.view.store.create(KEY, MOVED)
    file = tmp_path / "sessions.ndjson"
    file.write_text("an older backup, open to everybody")
    file.chmod(0o644)

    saved = await running.run("export", str(file))
    assert (saved.exit_code, saved.stdout) == (0, f"1201 sessions in {file}\n")
    assert saved.stderr == "", "no terminal, no progress"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["sessions.ndjson"]

    running.view.store = Registered().store
    restored = await running.run("import", str(file))
    again = await running.run("import", "--json", str(file))

    assert (restored.exit_code, restored.stdout) == (0, "1201 sessions restored\n")
    assert json.loads(again.stdout) == {"restored": 0, "skipped": 1201}
    assert {listed.name for listed in running.view.store.page("", 2000).sessions} == {*names, KEY.name}
    assert running.view.store.get(KEY, "someone") == MOVED


async def test_a_backup_goes_through_pipes(running: Running) -> None:
    running.view.fill(10)

    saved = await running.run("export")
    restored = await running.run("import", stdin=saved.stdout_bytes)

    assert saved.stderr == ""
    assert restored.stdout == "0 sessions restored, 10 skipped: they exist already or were ended\n"


async def test_a_link_to_a_backup_stays_a_link_and_a_device_a_device(
    running: Running, tmp_path: Path
) -> None:
    link, device = tmp_path / "link", tmp_path / "device"
    link.symlink_to(tmp_path / "file")
    device.symlink_to(os.devnull)

    assert (await running.run("export", str(link))).exit_code == 0
    assert (await running.run("export", str(device))).exit_code == 0

    assert link.is_symlink()
    assert (tmp_path / "file").is_file()
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


async def test_an_export_that_fails_leaves_the_older_backup(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "sessions.ndjson"
    file.write_text("older")
    running.view.failure = StoreError("down")

    result = await running.run("export", str(file))

    assert result.exit_code == 1
    assert "down" in result.stderr
    assert file.read_text() == "older"
    assert os.listdir(tmp_path) == ["sessions.ndjson"]


async def test_an_export_that_breaks_off_is_1_and_no_file(tmp_path: Path) -> None:
    class Failing(Registered):
        async def sessions_page(self, cursor: str, limit: int) -> Any:
            if cursor:
                raise StoreError("down")
            return await super().sessions_page(cursor, limit)

    view = Failing()
    view.fill(1200)
    async with serving(create_admin(view, None)) as address:
        to_file = await Running(view, address).run("export", str(tmp_path / "file"))
        to_pipe = await Running(view, address).run("export")

    for result in (to_file, to_pipe):
        assert result.exit_code == 1
        assert "broke off" in result.stderr
    assert os.listdir(tmp_path) == []


async def test_a_folder_that_cannot_be_written_is_1_with_a_sentence(running: Running, tmp_path: Path) -> None:
    result = await running.run("export", str(tmp_path / "no" / "such" / "file"))

    assert result.exit_code == 1
    assert "cannot write" in result.stderr


async def test_of_a_file_that_is_not_whole_nothing_is_restored(running: Running, tmp_path: Path) -> None:
    running.view.fill(700)
    saved = (await running.run("export")).stdout_bytes
    file = tmp_path / "file"
    file.write_bytes(saved[:-40])
    running.view.store = Registered().store

    from_file = await running.run("import", str(file))
    assert from_file.exit_code == 1
    assert "cut short" in from_file.stderr
    assert "Nothing was restored" in from_file.stderr
    assert running.view.restorations == []

    from_pipe = await running.run("import", stdin=saved[:-40])
    assert from_pipe.exit_code == 1
    assert "cut short" in from_pipe.stderr
    assert "to import again is safe" in from_pipe.stderr


async def test_a_file_on_standard_input_is_read_to_its_end_first(
    running: Running, environ: dict[str, str], tmp_path: Path
) -> None:
    running.view.fill(700)
    saved = (await running.run("export")).stdout_bytes
    running.view.store = Registered().store
    results = []
    for content in (saved[:-40], saved):
        (tmp_path / "file").write_bytes(content)
        with (tmp_path / "file").open("rb") as source:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "mcp_proxy", "sessions", "import"),
                env=environ,
                stdin=source,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        async with asyncio.timeout(PATIENCE_S):
            results.append(((await process.communicate()), process.returncode))

    (_, err), code = results[0]
    assert code == 1
    assert b"Nothing was restored" in err
    assert results[1] == ((b"700 sessions restored\n", b""), 0)


async def test_a_hostile_pipe_is_refused_with_the_sentence_of_the_proxy(running: Running) -> None:
    result = await running.run("import", stdin=b'{"mcp_proxy_sessions":1}\n' + b"a" * 10_000_000)

    assert result.exit_code == 1
    assert "line 2 is longer than" in result.stderr
    assert "Traceback" not in result.output


async def test_an_interrupted_export_leaves_no_file(tmp_path: Path, environ: dict[str, str]) -> None:
    asked = asyncio.Event()

    async def hanging(scope: Any, receive: Any, send: Any) -> None:
        lines = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        await send({"type": "http.response.body", "body": b'{"mcp_proxy_sessions":1}\n', "more_body": True})
        asked.set()
        await receive()
        await receive()

    async with serving(hanging) as address:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mcp_proxy", "sessions", "export", str(tmp_path / "file")),
            env=environ | {"MCP_PROXY_ADMIN": address},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            await asked.wait()
            while not os.listdir(tmp_path):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()

    assert process.returncode == 1
    assert b"Traceback" not in err
    assert os.listdir(tmp_path) == []
