"""The official client, and what its requests looked like when they arrived at the replicas.

Rules of this file: a client knows the address of the proxy only. Its requests carry a mark of their
own, so that the journals of the replicas, which all tests share, can be read for one test.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent

from tests.e2e.replica import MARK
from tests.tools import PATIENCE_S

MODERN = "2026-07-28"


@dataclass(frozen=True)
class Arrived:
    """One HTTP request as a replica received it."""

    replica: str
    method: str
    path: str
    headers: dict[str, str]

    @property
    def session(self) -> str | None:
        return self.headers.get("mcp-session-id")

    @property
    def mcp_method(self) -> str | None:
        return self.headers.get("mcp-method")


class Replicas:
    """The replicas as the test sees them: directly, not through the proxy."""

    def __init__(self, origins: dict[str, str]) -> None:
        self.origins = origins

    def urls(self, mode: str) -> list[str]:
        """MCP endpoints of this mode, one per replica."""
        return [f"{origin}/{mode}" for origin in self.origins.values()]

    async def journal(self, mark: str) -> list[Arrived]:
        """Every request with this mark that arrived, per replica in order."""
        arrived: list[Arrived] = []
        async with _http() as http:
            for name, origin in self.origins.items():
                entries = (await http.get(f"{origin}/journal/{mark}")).json()
                arrived += [Arrived(name, **entry) for entry in entries]
        return arrived

    async def open_gate(self, key: str) -> None:
        """Let the tool call go on that waits for ``key``, wherever it runs."""
        await self._everywhere("POST", f"/gate/{key}")

    async def tools_changed(self) -> None:
        """Every replica publishes that its tools have changed."""
        await self._everywhere("POST", "/tools-changed")

    async def was_cancelled(self, replica: str, key: str) -> None:
        """Returns once the tool call with this key has been cancelled on that replica."""
        async with _http() as http:
            (await http.get(f"{self.origins[replica]}/cancelled/{key}")).raise_for_status()

    async def _everywhere(self, method: str, path: str) -> None:
        async with _http() as http:
            for origin in self.origins.values():
                (await http.request(method, f"{origin}{path}")).raise_for_status()


def _http(**headers: str) -> httpx2.AsyncClient:
    """On loopback, whatever proxies the environment names."""
    return httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S, headers=headers)


class Guest:
    """Connects official clients to the proxy (or, to compare, to a replica)."""

    def __init__(self, origin: str, replicas: Replicas, mark: str) -> None:
        self.origin = origin
        self.replicas = replicas
        self.mark = mark
        """Unique per test; also good as the key of a gate."""

    @contextlib.asynccontextmanager
    async def connect(
        self, path: str, mode: str, *, origin: str = "", **options: Any
    ) -> AsyncIterator[Client]:
        """A client of ``mode`` at this path. Every request it makes is bounded in time."""
        async with _http(**{MARK: self.mark}) as http:
            transport = streamable_http_client(f"{origin or self.origin}/{path}", http_client=http)
            async with Client(transport, mode=mode, read_timeout_seconds=PATIENCE_S, **options) as client:
                yield client

    def http(self) -> httpx2.AsyncClient:
        """Plain HTTP to the proxy, for what the official client does not do."""
        return httpx2.AsyncClient(
            base_url=self.origin, trust_env=False, timeout=PATIENCE_S, headers={MARK: self.mark}
        )

    async def journal(self) -> list[Arrived]:
        return await self.replicas.journal(self.mark)


def answer(result: CallToolResult) -> Any:
    """What the tool returned."""
    assert not result.is_error, result.content
    value: Any = result.structured_content
    assert value is not None
    return value.get("result", value)


def text(result: CallToolResult) -> str:
    """The first text of a result, error or not."""
    first = result.content[0]
    assert isinstance(first, TextContent)
    return first.text
