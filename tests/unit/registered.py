"""An AdminView over a registry in memory, for tests of the admin listener and its commands; and how
its endpoints are asked, and a backup is written, without those commands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx2

from mcp_proxy.admin import BackendStatus, Check, Status
from mcp_proxy.admin.app import create_admin
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import Listed, Page, SessionKey, SessionRecord
from mcp_proxy.sessions.memory import MemoryStore
from mcp_proxy.telemetry.app_log import Level
from mcp_proxy.telemetry.recent import Recent

ROUTES = {"/mcp": "main", "/other": "other"}
BACKEND = "http://10.0.0.11:8000/mcp"


KEY = SessionKey("/mcp", b"secret-session-id")
NDJSON = {"content-type": "application/x-ndjson"}


class Nobody:
    """A Watcher that does not listen."""

    def learnt(self, key: SessionKey, record: SessionRecord) -> None: ...

    def forgot(self, key: SessionKey, record: SessionRecord, *, is_over: bool) -> None: ...


class Registered:
    """``failure``: what every later question to the registry raises."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.store = MemoryStore(7200.0, Nobody(), limit)
        self.failure: StoreError | None = None
        self.pages: list[int] = []
        """Limit of every page that was asked for."""
        self.restorations: list[int] = []
        """Size of every batch that was to be restored."""

    def fill(self, count: int, route: str = "/mcp") -> list[str]:
        """Create sessions; their names."""
        keys = [SessionKey(route, b"id-of-%d" % number) for number in range(count)]
        for number, key in enumerate(keys):
            assert self.store.create(key, SessionRecord(BACKEND, f"p{number % 3}", created_s=1_700_000_000))
        return sorted(key.name for key in keys)

    def _ask(self) -> None:
        if self.failure is not None:
            raise self.failure

    # --- AdminView -------------------------------------------------------------------

    def alive(self) -> bool:
        return True

    def ready(self) -> list[Check]:
        return []

    def status(self) -> Status:
        raise NotImplementedError

    def metrics(self, accept: str | None) -> tuple[bytes, str] | None:
        return None

    async def sessions_page(self, cursor: str, limit: int) -> Page:
        self._ask()
        self.pages.append(limit)
        return self.store.page(cursor, limit)

    async def session(self, name: str) -> Listed | None:
        self._ask()
        return self.store.show(name)

    async def end_session(self, name: str) -> bool:
        self._ask()
        return self.store.end(name)

    async def restore_sessions(self, sessions: list[Listed]) -> int:
        self._ask()
        self.restorations.append(len(sessions))
        return self.store.restore(sessions)

    def pool_of(self, session: Listed) -> str:
        return ROUTES.get(session.route, "")

    # --- what has nothing to do with sessions: ``operated.py`` has it ------------------

    def configuration(self) -> dict[str, Any]:
        raise NotImplementedError

    def drain_proxy(self) -> None:
        raise NotImplementedError

    def log_level(self) -> Level:
        raise NotImplementedError

    def set_log_level(self, level: Level) -> None:
        raise NotImplementedError

    async def recent(self, cursor: str) -> Recent:
        raise NotImplementedError

    async def drain_backend(
        self, backend_id: str, pool: str | None, seconds: float | None
    ) -> list[BackendStatus]:
        raise NotImplementedError

    async def undrain_backend(self, backend_id: str, pool: str | None) -> list[BackendStatus]:
        raise NotImplementedError


async def ask(
    view: Registered, path: str, method: str = "GET", token: str | None = None, **options: Any
) -> httpx2.Response:
    transport = httpx2.ASGITransport(create_admin(view, token))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:9901") as client:
        return await client.request(method, path, **options)


def reason(answer: httpx2.Response) -> str:
    word: str = answer.json()["error"]["reason"]
    return word


def line(key: SessionKey = KEY, **over: Any) -> dict[str, Any]:
    return {"name": key.name, "backend": BACKEND, "route": key.route, "expires_in_s": 100.0} | over


def export_of(lines: Iterable[dict[str, Any]], count: int | None = None) -> bytes:
    sessions = list(lines)
    first, last = (
        {"mcp_proxy_sessions": 1},
        {"mcp_proxy_sessions_end": len(sessions) if count is None else count},
    )
    return b"".join(json.dumps(each).encode() + b"\n" for each in [first, *sessions, last])


async def restore(view: Registered, body: bytes | AsyncIterator[bytes]) -> httpx2.Response:
    return await ask(view, "/sessions/import", "POST", content=body, headers=NDJSON)
