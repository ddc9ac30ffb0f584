"""The pools of a process from one configuration to the next: what is kept, made anew and let go."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest

from mcp_proxy import clock
from mcp_proxy.admission import Porter
from mcp_proxy.app import Service
from mcp_proxy.backends import Backend, Standing
from mcp_proxy.checkup import Checkup
from mcp_proxy.config import Config, load
from mcp_proxy.config.changes import compare
from mcp_proxy.errors import StartupError
from mcp_proxy.fleet import Fleet
from mcp_proxy.pools import Pool
from mcp_proxy.tasks import Tasks
from mcp_proxy.upstream.berths import Berths
from mcp_proxy.upstream.http11 import Http11Transport
from tests.tools.tls import Authority
from tests.unit.actors import ScriptedTransport
from tests.unit.poolside import pool_of, unreachable

ONE, TWO = "http://127.0.0.1:1/mcp", "http://127.0.0.1:2/mcp"


def config(folder: Path, *urls: str, others: dict[str, Any] | None = None, **settings: Any) -> Config:
    """Pool ``tools`` with these backends, and ``others``."""
    pools = {"tools": {"backends": list(urls), **settings}, **(others or {})}
    routes = [{"path": f"/{name}", "pool": name} for name in pools]
    file = folder / "proxy.yaml"
    file.write_text(json.dumps({"listen": "127.0.0.1:0", "pools": pools, "routes": routes}))
    return load(file, {}, {})


class Site:
    """A fleet that follows configurations."""

    def __init__(self, first: Config) -> None:
        self.tasks = Tasks()
        self.fleet = Fleet(
            self.tasks,
            berths=Berths(10),
            on_change=_nobody,
            on_overdue=_nobody,
            on_ejected=_nobody,
        )
        self.config = first
        self.fleet.prepare(first.pools, {})()

    def follow(self, config: Config) -> None:
        self.fleet.prepare(config.pools, compare(self.config, config).changed)()
        self.config = config

    def backend(self, url: str, pool: str = "tools") -> Backend:
        found = self.fleet.pools[pool].find(url)
        assert found is not None
        return found

    def transport(self, url: str) -> object:
        return self.fleet.pools["tools"].transport(self.backend(url))


def _nobody(_: object) -> None: ...


async def test_a_pool_that_has_not_changed_is_not_touched(tmp_path: Path) -> None:
    site = Site(config(tmp_path, ONE))
    pool, policy, transport = site.fleet.pools["tools"], site.fleet.pools["tools"].policy, site.transport(ONE)
    site.follow(config(tmp_path, ONE, others={"more": {"backends": [TWO]}}))
    assert list(site.fleet.pools) == ["tools", "more"]
    assert site.fleet.pools["tools"] is pool
    assert pool.policy is policy
    assert site.transport(ONE) is transport


async def test_another_policy_keeps_connections_and_backends(tmp_path: Path) -> None:
    site = Site(config(tmp_path, ONE))
    backend, transport = site.backend(ONE), site.transport(ONE)
    site.follow(config(tmp_path, ONE, drain="7s", credentials={"authorization": "Bearer new"}))
    assert site.fleet.pools["tools"].policy.drain_s == 7
    assert site.fleet.pools["tools"].authorization == b"Bearer new"
    assert (site.backend(ONE), site.transport(ONE)) == (backend, transport)


async def test_what_cannot_be_used_leaves_everything_as_it_was(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    site = Site(config(tmp_path, ONE))
    worse = config(tmp_path, ONE, TWO, drain="7s", tls={"ca": str(authority.ca)})
    authority.ca.write_text("gone bad since it was checked")
    with pytest.raises(StartupError, match="certificates"):
        site.follow(worse)
    assert [backend.id for backend in site.fleet.pools["tools"].backends] == [ONE]
    assert site.fleet.pools["tools"].policy.drain_s != 7


async def test_other_connections_are_made_anew_and_the_idle_old_ones_closed(tmp_path: Path) -> None:
    site = Site(config(tmp_path, ONE))
    old = site.transport(ONE)
    site.follow(config(tmp_path, ONE, timeouts={"connect": "1s"}))
    assert site.transport(ONE) is not old
    site.fleet.sweep(clock.now())
    assert len(site.tasks) == 1, "the old one is being closed"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(site.tasks) == 0


async def test_the_first_backend_with_tls_makes_connections_anew(tmp_path: Path) -> None:
    site = Site(config(tmp_path, ONE))
    old = site.transport(ONE)
    site.follow(config(tmp_path, ONE, "https://127.0.0.1:3/mcp"))
    renewed = site.transport(ONE)
    assert renewed is not old
    site.follow(config(tmp_path, ONE, TWO, "https://127.0.0.1:3/mcp"))
    assert site.transport(ONE) is renewed


async def test_a_removed_pool_stays_until_its_backends_have_left(tmp_path: Path) -> None:
    more = {"backends": [TWO], "drain": "1s"}
    site = Site(config(tmp_path, ONE, others={"more": more}))
    backend = site.backend(TWO, "more")
    site.follow(config(tmp_path, ONE))
    assert backend.standing is Standing.CLOSED
    assert site.fleet.health("more") == ["is being removed"]
    site.fleet.sweep(clock.now())
    assert list(site.fleet.pools) == ["tools", "more"]
    unreachable(site.fleet.pools["more"], backend)  # whoever leaves and is away need not be waited for
    site.fleet.sweep(clock.now())
    assert list(site.fleet.pools) == ["tools"]
    site.fleet.sweep(clock.now())
    await site.tasks.aclose()


async def test_a_removed_pool_that_comes_back_has_its_backends_again(tmp_path: Path) -> None:
    both = config(tmp_path, ONE, others={"more": {"backends": [TWO]}})
    site = Site(both)
    pool, backend = site.fleet.pools["more"], site.backend(TWO, "more")
    site.follow(config(tmp_path, ONE))
    site.fleet.sweep(clock.now())
    site.follow(both)
    site.fleet.sweep(clock.now())
    assert site.fleet.pools["more"] is pool
    assert site.backend(TWO, "more") is backend
    assert backend.standing is Standing.GOOD
    assert site.fleet.health("more") == []
    await site.tasks.aclose()


async def test_without_checks_nobody_stays_unhealthy(tmp_path: Path) -> None:
    site = Site(config(tmp_path, ONE, health={"active": {"check": "tcp"}}))
    site.fleet.pools["tools"].checked(site.backend(ONE), False)
    site.follow(config(tmp_path, ONE, health={"active": {"check": "tcp"}}, drain="7s"))
    assert not site.backend(ONE).is_healthy
    site.follow(config(tmp_path, ONE, drain="7s"))
    assert site.backend(ONE).is_healthy


async def test_checks_begin_anew_only_if_they_change(tmp_path: Path) -> None:
    """Or reloads that come often would put off every check."""
    checks = {"active": {"check": "tcp", "every": "5s"}}
    site = Site(config(tmp_path, ONE, health=checks))
    at_s = clock.now()
    site.fleet.sweep(at_s)
    site.follow(config(tmp_path, ONE, health=checks, credentials={"authorization": "Bearer new"}))
    site.fleet.sweep(at_s + 6)
    assert len(site.tasks) == 1, "a check that was due"
    site.follow(config(tmp_path, ONE, health={"active": {"check": "tcp", "every": "6s"}}))
    site.fleet.sweep(at_s + 13)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(site.tasks) == 0, "it is broken off, and others wait for their turn"
    await site.tasks.aclose()


async def test_a_backend_that_is_forgotten_is_not_looked_for(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    transport = ScriptedTransport("a", [])
    pool = pool_of({"a": transport}, "a", tasks=tasks)
    (backend,) = pool.backends
    unreachable(pool, backend)
    pool.update((), "reload")
    pool.sweep(clock.now() + 3)
    assert pool.is_empty
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.is_closed
    assert transport.probes == 0
    assert "a task failed" not in caplog.text
    await tasks.aclose()


async def test_a_hundred_reloads_leave_no_object_and_no_task(tmp_path: Path) -> None:
    def variant(number: int) -> Config:
        others: dict[str, Any] = {"more": {"backends": [TWO]}} if number % 3 else {}
        return config(
            tmp_path,
            *([ONE, TWO] if number % 2 else [ONE]),
            others=others,
            timeouts={"connect": f"{1 + number % 5}s"},
            health={"active": {"check": "tcp", "every": "60s"}} if number % 4 else {},
            credentials={"authorization": f"Bearer {number % 7}"},
        )

    def held() -> dict[str, int]:
        gc.collect()
        kinds = (Pool, Backend, Http11Transport, Checkup, Porter, asyncio.Task, Config)
        objects = gc.get_objects()
        return {kind.__name__: sum(type(each) is kind for each in objects) for kind in kinds}

    variants = [variant(number) for number in range(12)]
    service = Service(variants[0])
    await service.start()
    service.reload(variants[1])
    service.reload(variants[0])
    base = None
    for number in range(1, 101):
        service.reload(variants[number % 12])
        service.fleet.sweep(clock.now())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if number % 12 == 0:
            base = base or held()
            assert held() == base
    await service.aclose()
