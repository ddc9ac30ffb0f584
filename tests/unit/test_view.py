"""A running proxy as the admin listener sees it, in whatever state its pools are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mcp_proxy import clock
from mcp_proxy.admin import Check
from mcp_proxy.app import Service
from mcp_proxy.config import Config, load
from mcp_proxy.sessions import Listed, SessionRecord
from mcp_proxy.view import ServiceView

ONE, TWO = "http://127.0.0.1:1/mcp", "http://127.0.0.1:2/mcp"


def config(folder: Path, pools: dict[str, list[str]], **settings: Any) -> Config:
    """Each pool at a path of its name."""
    document = {
        "listen": "127.0.0.1:0",
        "pools": {name: {"backends": urls} for name, urls in pools.items()},
        "routes": [{"path": f"/{name}", "pool": name} for name in pools],
        "telemetry": {"access_log": "off"},
    }
    file = folder / "proxy.yaml"
    file.write_text(json.dumps(document | settings))
    return load(file, {}, {})


@contextlib.asynccontextmanager
async def serving(configuration: Config) -> AsyncIterator[tuple[Service, ServiceView]]:
    service = Service(configuration)
    try:
        yield service, ServiceView(service, service.drain)
    finally:
        await service.aclose()


def lines(view: ServiceView) -> dict[str, str]:
    checks = view.ready()
    assert all(check.ok for check in checks)
    return {check.name: check.detail for check in checks}


async def test_readiness_says_of_each_pool_how_many_are_up_and_how_many_leave(tmp_path: Path) -> None:
    async with serving(config(tmp_path, {"a": [ONE, TWO], "b": [ONE]})) as (service, view):
        assert (lines(view)["pool a"], lines(view)["pool b"]) == ("2 of 2 backends up", "1 of 1 backends up")
        service.reload(config(tmp_path, {"a": [ONE]}))
        said = lines(view)
        assert said["pool a"] == "1 of 1 backends up; 1 draining"
        assert said["pool b"] == "0 of 0 backends up; 1 draining; is being removed"


async def test_a_proxy_that_drains_is_not_ready_and_others_may_add_lines(tmp_path: Path) -> None:
    async with serving(config(tmp_path, {"a": [ONE]})) as (service, _):
        view = ServiceView(service, service.drain, lambda: [Check("more", True, "said")])
        assert view.ready()[-1] == Check("more", True, "said")
        view.drain_proxy()
        assert [check.name for check in view.ready() if not check.ok] == ["drain"]
        assert view.status().draining


async def test_a_backend_in_two_pools_is_drained_in_one_or_in_both(tmp_path: Path) -> None:
    async with serving(config(tmp_path, {"a": [ONE], "b": [ONE]})) as (_, view):
        (only,) = await view.drain_backend(ONE, "b", 5)
        assert only.pool == "b"
        assert {each.pool for each in await view.drain_backend(ONE, None, None)} == {"a", "b"}
        assert await view.drain_backend("http://nobody/", None, None) == []
        assert len(await view.undrain_backend(ONE, None)) == 2
        assert "draining" not in lines(view)["pool a"]


async def test_a_backend_that_nobody_names_any_more_does_not_stay(tmp_path: Path) -> None:
    async with serving(config(tmp_path, {"a": [ONE, TWO]})) as (service, view):
        service.reload(config(tmp_path, {"a": [ONE]}))
        assert len(await view.undrain_backend(TWO, None)) == 1
        assert "1 draining" in lines(view)["pool a"]


async def test_what_an_operator_drains_stays_drained_over_a_reload(tmp_path: Path) -> None:
    async with serving(config(tmp_path, {"a": [ONE, TWO]})) as (service, view):
        await view.drain_backend(TWO, None, None)
        service.reload(config(tmp_path, {"a": [ONE, TWO]}, limits={"body": "1MiB"}))
        service.reload(config(tmp_path, {"a": [ONE]}))
        service.reload(config(tmp_path, {"a": [TWO, ONE]}))
        assert "1 draining" in lines(view)["pool a"]
        await view.undrain_backend(TWO, None)
        assert lines(view)["pool a"] == "2 of 2 backends up"


async def test_limits_and_the_configuration_are_those_in_force(tmp_path: Path) -> None:
    async with serving(config(tmp_path, {"a": [ONE]})) as (service, view):
        service.reload(config(tmp_path, {"a": [ONE]}, limits={"streams": 7, "per_client": {"streams": 3}}))
        limits = view.status().limits
        assert (limits["streams"], limits["per_client.streams"]) == (7, 3)
        assert view.configuration()["limits"]["streams"] == 7


async def test_a_session_belongs_to_the_pool_behind_its_route(tmp_path: Path) -> None:
    def listed(route: str, backend: str) -> Listed:
        record = SessionRecord(backend, "", b"", 0, b"", 0)
        return Listed("name", route, record, 0.0)

    async with serving(config(tmp_path, {"a": [ONE], "b": [TWO]})) as (service, view):
        assert view.pool_of(listed("/b", TWO)) == "b"
        service.reload(config(tmp_path, {"a": [ONE]}))
        assert view.pool_of(listed("/b", TWO)) == "b", "its backend is still there"
        backend = service.pools["b"].find(TWO)
        assert backend is not None
        backend.unreachable_since_s = clock.now()
        service.fleet.sweep(clock.now())
        assert view.pool_of(listed("/b", TWO)) == ""
        assert list(view.status().pools) == ["a"]
