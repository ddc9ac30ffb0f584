"""Backends of SRV records, asked of a real name server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dns.asyncresolver import Resolver

from mcp_proxy.backends import WEIGHT_LIMIT, Endpoint
from mcp_proxy.discovery.srv import SrvSource
from tests.tools import PATIENCE_S
from tests.tools.dns_server import DnsServer
from tests.tools.resolving import is_possible, run_isolated
from tests.unit.fakes import until
from tests.unit.sources import running

RECORD = "_mcp._tcp.weather.test."
QUICK_S = 0.01
LIFETIME_S = 0.5
"""For an answer from this machine, so that silence does not take long either."""


def source(server: DnsServer, *, every_s: float = QUICK_S) -> SrvSource:
    resolver = Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = server.port
    resolver.lifetime = LIFETIME_S
    return SrvSource(RECORD, every_s=every_s, resolver=resolver)


async def test_each_record_is_a_backend_with_its_port_and_weight() -> None:
    async with DnsServer() as server:
        server.put(
            RECORD,
            "SRV",
            "0 5 8000 a.weather.test.",
            "0 0 8001 b.weather.test.",
            "0 65535 8002 a.weather.test.",
        )
        server.put("a.weather.test.", "A", "10.0.0.1")
        server.put("b.weather.test.", "A", "10.0.0.2", "10.0.0.3")
        async with running(source(server)) as published:
            assert await published.count(1) == (
                Endpoint("10.0.0.1", 8000, weight=5),
                Endpoint("10.0.0.1", 8002, weight=WEIGHT_LIMIT),
                Endpoint("10.0.0.2", 8001, weight=1),
                Endpoint("10.0.0.3", 8001, weight=1),
            )


async def test_a_target_with_addresses_of_both_families_is_reached_by_one() -> None:
    async with DnsServer() as server:
        server.put(RECORD, "SRV", "0 1 8000 a.weather.test.", "0 1 8000 b.weather.test.")
        server.put("a.weather.test.", "A", "10.0.0.1")
        server.put("a.weather.test.", "AAAA", "fd00::1")
        server.put("b.weather.test.", "AAAA", "fd00::2")
        async with running(source(server)) as published:
            await published.count(1)
        assert published.hosts == ["10.0.0.1", "fd00::2"]


async def test_only_the_best_priority_that_has_addresses_is_used() -> None:
    async with DnsServer() as server:
        server.put(RECORD, "SRV", "5 1 1 gone.test.", "10 1 2 spare.test.", "20 1 3 last.test.")
        server.put("spare.test.", "A", "10.0.0.2")
        server.put("last.test.", "A", "10.0.0.3")
        async with running(source(server)) as published:
            assert await published.count(1) == (Endpoint("10.0.0.2", 2),)
            server.put("gone.test.", "A", "10.0.0.1")
            assert await published.count(2) == (Endpoint("10.0.0.1", 1),)


async def test_addresses_that_come_along_are_not_asked_for() -> None:
    async with DnsServer() as server:
        server.put(RECORD, "SRV", "0 1 8000 a.weather.test.", "0 1 8000 b.weather.test.")
        server.come_along("a.weather.test.", "A", "10.0.0.1")
        server.come_along("b.weather.test.", "AAAA", "fd00::2")
        async with running(source(server, every_s=3600.0)) as published:
            await published.count(1)
        assert published.hosts == ["10.0.0.1", "fd00::2"]
        assert server.questions == [(RECORD, "SRV")]


async def test_a_ttl_shortens_the_time_to_the_next_look() -> None:
    async with DnsServer() as server:
        server.put(RECORD, "SRV", "0 1 8000 a.weather.test.", ttl=3600)
        server.put("a.weather.test.", "A", "10.0.0.1", ttl=0)
        async with running(source(server, every_s=3600.0)) as published:
            await published.count(1)
            server.put("a.weather.test.", "A", "10.0.0.2")
            assert await published.count(2) == (Endpoint("10.0.0.2", 8000),)


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED"])
async def test_a_name_server_that_fails_changes_nothing(code: str) -> None:
    async with DnsServer() as server:
        server.put(RECORD, "SRV", "0 1 8000 a.weather.test.")
        server.put("a.weather.test.", "A", "10.0.0.1")
        one = source(server)
        async with running(one) as published:
            await published.count(1)
            server.fail(code)
            await until(lambda: not one.health()[0], QUICK_S)
            server.fail(None)
            await until(lambda: one.health()[0], QUICK_S)
        assert len(published.all) == 1


async def test_a_target_that_cannot_be_resolved_makes_the_whole_look_fail() -> None:
    async with DnsServer() as server:
        server.put(RECORD, "SRV", "0 1 8000 a.weather.test.", "0 1 8000 b.weather.test.")
        server.come_along("a.weather.test.", "A", "10.0.0.1")
        server.refuse("b.weather.test.")
        one = source(server)
        async with running(one) as published:
            await until(lambda: "cannot be looked up" in one.health()[1], QUICK_S)
        assert published.all == []


@pytest.mark.parametrize("records", [(), ("0 0 0 .",), ("0 1 8000 nobody.test.",)])
async def test_no_records_and_records_of_nobody_empty_nothing_at_once(records: tuple[str, ...]) -> None:
    async with DnsServer() as server:
        server.put(RECORD, "SRV", "0 1 8000 a.weather.test.")
        server.put("a.weather.test.", "A", "10.0.0.1")
        one = source(server)
        async with running(one) as published:
            await published.count(1)
            server.put(RECORD, "SRV", *records)
            await until(lambda: "suddenly none" in one.health()[1], QUICK_S)
            await server.asked(len(server.questions) + 10)
        assert len(published.all) == 1
        assert one.health()[0]


async def test_silence_is_no_answer_and_the_source_can_be_cancelled_in_it() -> None:
    async with DnsServer() as server:
        server.fall_silent()
        one = source(server)
        async with running(one) as published:
            await server.asked(1)
        assert published.all == []


async def test_silence_is_said() -> None:
    async with DnsServer() as server:
        server.fall_silent()
        one = source(server)
        async with running(one):
            await until(lambda: "no name server answers" in one.health()[1], QUICK_S)
        assert not one.health()[0]


@pytest.mark.skipif(not is_possible(), reason="namespaces are forbidden here")
def test_without_a_resolver_of_its_own_it_asks_as_the_system_does() -> None:
    said = run_isolated(Path(__file__).with_name("resolving_services.py"))
    assert said.splitlines() == ["found: 10.0.0.1 8000", "relative: 10.0.0.1 8000"]


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [("srv", "dns", "dns"), ("kubernetes", "lightkube", "kubernetes")],
)
def test_a_source_whose_library_is_missing_says_what_to_install(
    module: str, library: str, extra: str
) -> None:
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from mcp_proxy.errors import StartupError\n"
        f"try: import mcp_proxy.discovery.{module}\n"
        "except StartupError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    sentence = f"discover.{module} needs the extra {extra}: pip install 'mcp-reverse-proxy[{extra}]'\n"
    assert (done.stdout, done.stderr) == (sentence, "")
