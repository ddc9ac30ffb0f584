"""Several pools and few descriptors (O3): what idles at one is not missing at another."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.tools.backend import Backend
from tests.tools.client import Client, call, post
from tests.tools.mcp_backend import Streams
from tests.wire.rig import bench, case


async def test_idle_connections_to_one_pool_leave_descriptors_for_the_next(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    async with contextlib.AsyncExitStack() as stack:
        held = Streams()
        others = {name: await stack.enter_async_context(Backend(held)) for name in names}
        over = {
            "pools": {name: {"backends": [backend.url]} for name, backend in others.items()},
            "routes": [
                {"path": "/mcp", "pool": "tools"},
                *({"path": f"/{name}", "pool": name} for name in names),
            ],
        }
        rig = await stack.enter_async_context(bench(tmp_path, over, open_files=256))
        await stack.enter_async_context(case(rig))
        count = (await rig.proxy.status())["limits"]["connections"]
        clients = [await rig.client() for _ in range(count)]
        for name in names:
            for client in clients:
                await client.send(post(call(1), target=f"/{name}"))
            await answered(clients, held)
            assert len(others[name].take()) == count
            assert (await rig.proxy.admin("/livez")).status == 200


async def answered(clients: list[Client], held: Streams) -> None:
    """All calls are at their backend at the same time, and then all are answered."""
    streams = [await held.next() for _ in clients]
    for stream in streams:
        await stream.end()
    for client in clients:
        assert (await client.answer()).status == 200
