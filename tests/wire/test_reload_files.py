"""Files that change under a running proxy: good ones, bad ones, and every way in which they are replaced.

Rules of this file: without a signal the proxy has to notice by itself; a bad file changes nothing but what
the proxy says of itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools.backend import Backend
from tests.tools.client import call, post
from tests.tools.mcp_backend import json_answer
from tests.wire.reloading import Site, flows, pools, servers, site


def named(backend: Backend, secret: str) -> dict[str, Any]:
    return pools([backend], credentials={"authorization": secret})


async def sent(proxy: Site, backend: Backend) -> bytes:
    """The credential that a backend gets now."""
    client = await proxy.client()
    assert (await client.ask(post(call(1)))).status == 200
    return backend.take_one().head.one("authorization") or b""


async def test_a_bad_file_is_told_with_its_lines_and_a_good_one_heals_it(tmp_path: Path) -> None:
    async with servers("a") as ((a,), backends), site(pools(backends), tmp_path) as proxy:
        session = await proxy.session()
        client, stream = await proxy.listening(session, a)
        document = json.loads(proxy.text(pools(backends)))
        document["pools"]["tools"]["balanse"] = "hash"
        document["limits"] = {"streams": -1}
        text = json.dumps(document, indent=1)
        log = await proxy.refused(text)
        for key in ("balanse", "streams"):
            number = text[: text.index(f'"{key}"')].count("\n") + 1
            assert any(f"proxy.yaml:{number}: " in line and key in line for line in log.splitlines()), log
        assert "the one before stays in force" in log
        ready = await proxy.proxy.admin("/readyz?verbose")
        assert ready.status == 200
        assert b"the last reload failed" in ready.body

        syntax = await proxy.refused("pools: [\n  {")
        assert "proxy.yaml:" in syntax
        assert (await session.call()).status == 200
        await flows(client, stream, "still")

        await proxy.reload(pools(backends))
        assert "the last reload failed" not in await proxy.readiness()
        assert await proxy.reloads("failed") >= 2
        assert (await session.call()).status == 200
        await flows(client, stream, "still")


async def test_a_certificate_that_is_none_is_refused_and_nothing_has_changed(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, site(named(backend, "Bearer one"), tmp_path) as proxy:
        (tmp_path / "ca.pem").write_text("no certificate")
        bad = named(backend, "Bearer two")
        bad["pools"]["tools"]["tls"] = {"ca": str(tmp_path / "ca.pem")}
        log = await proxy.refused(proxy.text(bad))
        assert "ca.pem" in log
        assert await sent(proxy, backend) == b"Bearer one"


async def test_no_pools_at_all_are_refused(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, site(named(backend, "Bearer one"), tmp_path) as proxy:
        without: list[dict[str, Any]] = [{"pools": {}, "routes": []}, {"pools": {}}, {}]
        for empty in without:
            await proxy.refused(proxy.text(empty))
            assert await sent(proxy, backend) == b"Bearer one"


def in_place(file: Path, text: str) -> None:
    file.write_text(text)


def renamed(file: Path, text: str) -> None:
    fresh = file.with_suffix(".fresh")
    fresh.write_text(text)
    os.replace(fresh, file)


def deleted_and_restored(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


@pytest.mark.parametrize("put", [in_place, renamed, deleted_and_restored])
async def test_a_changed_file_is_noticed_without_a_signal(
    put: Callable[[Path, str], None], tmp_path: Path
) -> None:
    async with Backend(json_answer()) as backend, site(named(backend, "Bearer one"), tmp_path) as proxy:
        put(proxy.file, proxy.text(named(backend, "Bearer two")))
        await proxy.reloaded(1, "done")
        assert await sent(proxy, backend) == b"Bearer two"


async def test_a_file_that_is_gone_changes_nothing_until_it_is_back(tmp_path: Path) -> None:
    async with Backend(json_answer()) as backend, site(named(backend, "Bearer one"), tmp_path) as proxy:
        proxy.file.unlink()
        await proxy.reloaded(1, "failed")
        assert not await proxy.is_current()
        assert await sent(proxy, backend) == b"Bearer one"
        proxy.file.write_text(proxy.text(named(backend, "Bearer two")))
        await proxy.reloaded(1, "done")
        assert await proxy.is_current()
        assert await sent(proxy, backend) == b"Bearer two"


async def test_a_config_map_that_is_swapped_is_noticed(tmp_path: Path) -> None:
    """As a kubelet does it: the file is a link through ``..data``, which is replaced as a whole."""

    def publish(version: str, text: str) -> None:
        folder = tmp_path / f"..{version}"
        folder.mkdir()
        (folder / "proxy.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(folder.name)
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

    async with Backend(json_answer()) as backend, site(named(backend, "Bearer one"), tmp_path) as proxy:
        publish("first", proxy.file.read_text())
        (tmp_path / "link").symlink_to("..data/proxy.yaml")
        os.replace(tmp_path / "link", proxy.file)
        await proxy.reloaded(1, "done")
        publish("second", proxy.text(named(backend, "Bearer two")))
        await proxy.reloaded(2, "done")
        assert await sent(proxy, backend) == b"Bearer two"
        publish("third", "pools: {}")
        await proxy.reloaded(1, "failed")
        assert await sent(proxy, backend) == b"Bearer two"


async def test_a_secret_that_is_rotated_in_its_own_file_is_noticed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("Bearer one")
    async with Backend(json_answer()) as backend:
        config = pools([backend], credentials={"authorization": f"file:{secret}"})
        async with site(config, tmp_path) as proxy:
            assert await sent(proxy, backend) == b"Bearer one"
            secret.write_text("Bearer two")
            await proxy.reloaded(1, "done")
            assert await sent(proxy, backend) == b"Bearer two"
            assert "Bearer" not in proxy.proxy.output
