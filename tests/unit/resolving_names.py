"""A program for ``tests.tools.resolving``: a headless Service whose records change, and fail in every way."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from mcp_proxy.discovery.dns import DnsSource
from tests.tools.dns_server import DnsServer
from tests.tools.resolving import raise_loopback
from tests.unit.fakes import until
from tests.unit.sources import running

NAME = "weather.mcp.test."
TURN_S = 0.01


async def main() -> None:
    raise_loopback()
    async with DnsServer(port=53) as server:
        server.put(NAME, "A", "10.0.0.1", "10.0.0.2")
        one = DnsSource(NAME, 8000, every_s=TURN_S)
        async with running(one) as published:
            await published.count(1)
            print("found:", *published.hosts)
            server.put(NAME, "A", "10.0.0.2", "10.0.0.3")
            await published.count(2)
            print("changed:", *published.hosts)
            server.fail("SERVFAIL")
            await until(lambda: not one.health()[0], TURN_S)
            print("failed:", one.health())
            server.fail(None)
            server.put(NAME, "A")
            await until(lambda: "suddenly" in one.health()[1], TURN_S)
            print("gone:", one.health())
            server.put(NAME, "TXT", "there, but without addresses")
            await server.asked(len(server.questions) + 8)
            print("empty:", one.health())
            server.fall_silent()
            await until(lambda: not one.health()[0], TURN_S)
            print("silent:", one.health())
        print("published:", len(published.all))


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        uvloop.run(main())
    else:
        asyncio.run(main())
