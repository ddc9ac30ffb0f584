"""A program for ``tests.tools.resolving``: SRV records, by the whole name and in a search domain."""

from __future__ import annotations

import asyncio

from mcp_proxy.discovery.srv import SrvSource
from tests.tools.dns_server import DnsServer
from tests.tools.resolving import raise_loopback
from tests.unit.sources import running


async def main() -> None:
    raise_loopback()
    async with DnsServer(port=53) as server:
        server.put("_mcp._tcp.weather.mcp.test.", "SRV", "0 1 8000 a.weather.mcp.test.")
        server.put("a.weather.mcp.test.", "A", "10.0.0.1")
        for what, name in (("found", "_mcp._tcp.weather.mcp.test"), ("relative", "_mcp._tcp.weather")):
            async with running(SrvSource(name)) as published:
                (endpoint,) = await published.count(1)
                print(f"{what}: {endpoint.host} {endpoint.port}")


if __name__ == "__main__":
    asyncio.run(main())
