"""Backends of a name, asked of the system's resolver or of one that answers what a test says."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mcp_proxy.backends import Endpoint, Source
from mcp_proxy.discovery.dns import DnsSource, resolve
from tests.tools import PATIENCE_S
from tests.tools.resolving import is_possible, run_isolated
from tests.unit.fakes import until
from tests.unit.sources import running

QUICK_S = 0.01


class Resolver:
    """Answers with ``hosts``, or raises ``error``; counts the questions. ``gate``: closed, it hangs."""

    def __init__(self, *hosts: str) -> None:
        self.hosts: Sequence[str] = hosts
        self.error: Exception | None = None
        self.asked: list[tuple[str, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, host: str, port: int) -> Sequence[tuple[Any, ...]]:
        self.asked.append((host, port))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in self.hosts]

    async def asked_again(self, times: int = 2) -> None:
        """So often that the answer before the last has been dealt with."""
        wanted = len(self.asked) + times
        await until(lambda: len(self.asked) >= wanted)


def source(resolver: Resolver, every_s: float = QUICK_S) -> DnsSource:
    return DnsSource("weather.test", 8000, path="/mcp", every_s=every_s, resolve=resolver)


async def test_the_systems_resolver_finds_localhost() -> None:
    one = DnsSource("localhost", 8000, path="/weather", tls=True)
    async with running(one) as published:
        endpoints = await published.count(1)
    assert Endpoint("127.0.0.1", 8000, "/weather", tls=True) in endpoints
    assert {endpoint.host for endpoint in endpoints} <= {"127.0.0.1", "::1"}
    assert one.health()[0]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.skipif(not is_possible(), reason="namespaces are forbidden here")
def test_the_systems_resolver_tells_a_name_without_addresses_from_one_that_it_cannot_find_out(
    loop: str,
) -> None:
    kept = "2 backends from before"
    failed = (False, f"dns weather.mcp.test.: the name cannot be resolved; {kept}")
    doubted = (True, f"dns weather.mcp.test.: suddenly none; {kept} until that is certain")
    assert run_isolated(Path(__file__).with_name("resolving_names.py"), loop).splitlines() == [
        "found: 10.0.0.1 10.0.0.2",
        "changed: 10.0.0.2 10.0.0.3",
        f"failed: {failed}",
        f"gone: {doubted}",
        f"empty: {doubted}",
        f"silent: {failed}",
        "published: 2",
    ]


async def test_addresses_are_given_as_addresses_are() -> None:
    assert {address[0] for *_, address in await resolve("192.0.2.7", 80)} == {"192.0.2.7"}


async def test_every_address_is_a_backend_once() -> None:
    resolver = Resolver("10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.2")
    async with running(source(resolver)) as published:
        assert await published.count(1) == tuple(
            Endpoint(host, 8000) for host in ("10.0.0.1", "10.0.0.2", "fd00::1")
        )
    assert resolver.asked[0] == ("weather.test", 8000)


async def test_only_changes_are_published() -> None:
    resolver = Resolver("10.0.0.1", "10.0.0.2")
    async with running(source(resolver)) as published:
        await published.count(1)
        await resolver.asked_again()
        resolver.hosts = ("10.0.0.2", "10.0.0.1")
        await resolver.asked_again()
        resolver.hosts = ("10.0.0.2", "10.0.0.3")
        await published.count(2)
    assert [[one.host for one in endpoints] for endpoints in published.all] == [
        ["10.0.0.1", "10.0.0.2"],
        ["10.0.0.2", "10.0.0.3"],
    ]


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"),
        OSError(24, "Too many open files"),
        UnicodeError("label too long"),
        RuntimeError("a surprise"),
    ],
    ids=["timeout", "servfail", "exhausted", "no-name", "surprise"],
)
async def test_a_resolver_that_fails_changes_nothing_is_said_once_and_ends(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mcp_proxy")
    resolver = Resolver("10.0.0.1")
    one = source(resolver)
    async with running(one) as published:
        await published.count(1)
        resolver.error = error
        await resolver.asked_again(4)
        is_well, said = one.health()
        assert not is_well
        assert "1 backend from before" in said
        resolver.error = None
        await until(lambda: one.health()[0], QUICK_S)
    assert len(published.all) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "10.0.0.1" not in caplog.text + said


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_NODATA])
async def test_a_name_without_addresses_is_doubted_and_said_once(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = Resolver("10.0.0.1")
    one = source(resolver)
    async with running(one) as published:
        await published.count(1)
        resolver.error = socket.gaierror(code, "Name or service not known")
        await resolver.asked_again(5)
        assert one.health() == (
            True,
            "dns weather.test: suddenly none; 1 backend from before until that is certain",
        )
        resolver.error = None
        resolver.hosts = ("10.0.0.9",)
        assert await published.count(2) == (Endpoint("10.0.0.9", 8000),)
    assert len(published.all) == 2
    assert len(caplog.records) == 1


async def test_somebody_who_asks_gets_a_look_long_before_its_turn() -> None:
    resolver = Resolver("10.0.0.1")
    one = source(resolver, every_s=3600.0)
    async with running(one) as published:
        await published.count(1)
        resolver.hosts = ("10.0.0.2",)
        for _ in range(100):
            one.refresh()
        assert await published.count(2) == (Endpoint("10.0.0.2", 8000),)
    assert len(resolver.asked) == 2, "a hundred that ask are one look"


async def test_asking_during_a_look_leads_to_another_one() -> None:
    resolver = Resolver("10.0.0.1")
    one = source(resolver, every_s=3600.0)
    resolver.gate.clear()
    async with running(one) as published:
        await until(lambda: resolver.asked)
        one.refresh()
        resolver.gate.set()
        await published.count(1)
        resolver.hosts = ("10.0.0.2",)
        await published.count(2)
    assert len(resolver.asked) == 2


async def test_a_failed_look_is_repeated_before_a_turn_that_is_far_away() -> None:
    resolver = Resolver()
    resolver.error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    one = source(resolver, every_s=3600.0)
    async with running(one):
        await until(lambda: len(resolver.asked) == 2, QUICK_S)
    assert one.health() == (False, "dns weather.test: the name cannot be resolved; 0 backends from before")


async def test_before_its_first_look_a_source_is_not_well() -> None:
    one: Source = source(Resolver())
    assert one.health() == (False, "dns weather.test: not looked yet")


async def test_it_can_be_cancelled_while_the_resolver_hangs() -> None:
    resolver = Resolver()
    resolver.gate.clear()
    async with asyncio.timeout(PATIENCE_S), running(source(resolver)) as published:
        await until(lambda: resolver.asked)
    assert published.all == []
