"""The Reloader: what it puts in force, what it refuses, and what it shows of both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mcp_proxy.config import Config, read
from mcp_proxy.errors import StartupError
from mcp_proxy.reload import Reloader
from mcp_proxy.tasks import Tasks
from tests.tools import PATIENCE_S
from tests.unit.fakes import until


class Site:
    """A file, and what was put in force of it."""

    def __init__(self, folder: Path, apply: Callable[[Config], Awaitable[None]] | None = None) -> None:
        self.file = folder / "proxy.yaml"
        self.write()
        self.applied: list[Config] = []
        self.then = apply
        self.reloader = Reloader(read(self.file, {}, {}), self._apply)

    def write(self, **settings: object) -> None:
        document = {"pools": {"tools": {"backends": ["http://127.0.0.1:1/mcp"]}}} | settings
        document.setdefault("routes", [{"path": "/mcp", "pool": "tools"}])
        self.file.write_text(json.dumps(document, indent=1))

    async def _apply(self, config: Config) -> None:
        self.applied.append(config)
        if self.then is not None:
            await self.then(config)

    def shown(self) -> tuple[bool, float, float]:
        """Current, done, failed."""
        samples = {
            (sample.name, sample.labels.get("result", "")): sample.value
            for metric in self.reloader.collect()
            for sample in metric.samples
        }
        total = "mcp_proxy_config_reloads_total"
        is_current = bool(samples["mcp_proxy_config_last_reload_success", ""])
        said = self.reloader.check()
        assert said.ok, "a proxy that serves as it did is ready"
        assert (said.detail == "in force") is is_current
        return is_current, samples[total, "done"], samples[total, "failed"]


def bodies(site: Site) -> list[int]:
    return [config.limits.body for config in site.applied]


async def test_what_the_file_says_is_put_in_force(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mcp_proxy")
    site = Site(tmp_path)
    assert site.shown() == (True, 0, 0)
    site.write(limits={"body": "1MiB"})
    await site.reloader.reload()
    assert bodies(site) == [2**20]
    assert site.shown() == (True, 1, 0)
    assert "reloaded (limits.body)" in caplog.text
    await site.reloader.reload()
    assert "reloaded (nothing has changed)" in caplog.text
    assert site.shown() == (True, 2, 0)


async def test_every_problem_of_a_bad_file_is_told_and_nothing_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path)
    site.write(limits={"body": -1}, lisen="x")
    await site.reloader.reload()
    assert site.applied == []
    assert site.shown() == (False, 0, 1)
    for key in ("limits.body", "lisen"):
        assert f": {key}: " in caplog.text
    site.write()
    await site.reloader.reload()
    assert site.shown() == (True, 1, 1)


async def test_what_needs_a_restart_is_not_applied_and_nothing_else_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path)
    site.write(limits={"body": "1MiB"}, listen="127.0.0.1:1", workers=1)
    await site.reloader.reload()
    assert site.applied == []
    assert site.shown() == (False, 0, 1)
    assert "proxy.yaml:" in caplog.text
    assert "restart" in caplog.text


async def test_what_cannot_be_used_is_compared_with_what_is_in_force_the_next_time(tmp_path: Path) -> None:
    async def refuse(config: Config) -> None:
        raise StartupError("cannot use it")

    site = Site(tmp_path, refuse)
    site.write(limits={"body": "1MiB"})
    await site.reloader.reload()
    assert site.shown() == (False, 0, 1)
    site.then = None
    await site.reloader.reload()
    assert bodies(site) == [2**20, 2**20]
    assert site.shown() == (True, 1, 1)


async def test_a_defect_while_it_is_applied_does_not_end_the_looking(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_off(config: Config) -> None:
        raise KeyError("a defect")

    site = Site(tmp_path, break_off)
    tasks = Tasks()
    looking = tasks.spawn(site.reloader.run())
    site.reloader.ask()
    async with asyncio.timeout(PATIENCE_S):
        await until(lambda: site.shown() == (False, 0, 1), 0.001)
        assert "KeyError" in caplog.text
        site.then = None
        site.reloader.ask()
        await until(lambda: site.shown() == (True, 1, 1), 0.001)
    assert not looking.done()
    await tasks.aclose()


async def test_whoever_asks_during_a_reload_gets_one_more_and_never_two_at_once(tmp_path: Path) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()
    at_once = 0

    async def slowly(config: Config) -> None:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        begun.set()
        await gate.wait()
        at_once -= 1

    site = Site(tmp_path, slowly)
    tasks = Tasks()
    tasks.spawn(site.reloader.run())
    site.reloader.ask()
    async with asyncio.timeout(PATIENCE_S):
        await begun.wait()
        site.write(limits={"body": "1MiB"})
        for _ in range(100):
            site.reloader.ask()
        gate.set()
        await until(lambda: site.shown() == (True, 2, 0), 0.001)
    await tasks.aclose()
    assert bodies(site)[1:] == [2**20]


async def test_a_file_that_changes_while_it_is_applied_is_noticed_without_a_signal(tmp_path: Path) -> None:
    async def meddle(config: Config) -> None:
        if len(site.applied) == 1:
            site.write(limits={"body": "2MiB"})

    site = Site(tmp_path, meddle)
    tasks = Tasks()
    site.write(limits={"body": "1MiB"})
    tasks.spawn(site.reloader.run())
    site.reloader.ask()
    async with asyncio.timeout(PATIENCE_S):
        await until(lambda: len(site.applied) == 2, 0.01)
    await tasks.aclose()
    assert bodies(site) == [2**20, 2 * 2**20]


async def test_a_secret_is_in_no_line_about_a_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mcp_proxy")
    site = Site(tmp_path)
    pool = {"backends": ["http://127.0.0.1:1/mcp"], "credentials": {"authorization": "Bearer hush"}}
    site.write(pools={"tools": pool})
    await site.reloader.reload()
    site.write(pools={"tools": {**pool, "credentials": {"authorization": "Bearer hush\n"}}}, lisen=1)
    await site.reloader.reload()
    assert site.shown() == (False, 1, 1)
    assert "hush" not in caplog.text


async def test_a_proxy_without_a_file_has_nothing_to_read_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mcp_proxy")
    applied: list[Config] = []

    async def apply(config: Config) -> None:
        applied.append(config)

    told = read(None, {}, {"backends": ["http://127.0.0.1:1/mcp"]})
    await Reloader(told, apply).reload()
    assert applied == [told.config]
    assert "reloaded (nothing has changed)" in caplog.text
