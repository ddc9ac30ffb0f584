"""Clients that connect and never finish a TLS handshake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.backend import Backend
from tests.tools.client import Client
from tests.tools.mcp_backend import json_answer
from tests.tools.proxy import launch
from tests.tools.tls import Authority


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["silent", "half a hello"])
async def test_a_handshake_has_as_long_as_a_head(tmp_path: Path, begin: bytes) -> None:
    """A connection is counted when its handshake is over; until then only this ends it."""
    by = Authority(tmp_path)
    async with Backend(json_answer()) as backend:
        config = {
            "pools": {"tools": {"backends": [backend.url]}},
            "tls": {"certificate": str(by.certificate), "key": str(by.key)},
            "limits": {"head_timeout": "1s"},
        }
        async with launch(config, tmp_path) as proxy:
            before = proxy.descriptors()
            clients = [await Client.connect(proxy.port) for _ in range(20)]
            for client in clients:
                await client.send(begin)
            for client in clients:
                await client.closed()
                client.close()
            assert proxy.descriptors() <= before + 1
            assert proxy.traceback() == ""
