"""Watching a Service at a scripted API server, for the tests of that source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp_proxy.backends import Endpoint
from mcp_proxy.discovery.kubernetes import KubernetesSource
from tests.tools.kube_api import KubeApi
from tests.unit.fakes import until
from tests.unit.sources import Published, running

TURN_S = 0.01


def source(namespace: str | None = None, port: int | str | None = None) -> KubernetesSource:
    return KubernetesSource("weather", namespace, port=port, draw=lambda: 1.0)


@asynccontextmanager
async def watching(api: KubeApi, one: KubernetesSource) -> AsyncIterator[Published]:
    """From the first watch on; in the end nothing of it is left."""
    before = len(asyncio.all_tasks())
    async with running(one) as published:
        await api.until(watches=1)
        yield published
    await api.until(connections=0)
    await until(lambda: len(asyncio.all_tasks()) <= before)


def backend(host: str, port: int = 8000, *, is_open: bool = True) -> Endpoint:
    return Endpoint(host, port, is_open=is_open)
