"""An AdminView with pools that can be drained and traffic that can be watched, for tests of the admin
listener and of the commands that operate a proxy."""

from __future__ import annotations

from typing import Any

import msgspec

from mcp_proxy.admin import BackendStatus, DrainStatus, PoolStatus, Status
from mcp_proxy.clock import now
from mcp_proxy.errors import Fault, Phase
from mcp_proxy.telemetry import RequestRecord
from mcp_proxy.telemetry.app_log import Level
from mcp_proxy.telemetry.recent import Recent, Ring
from tests.unit.registered import Registered

ONE = "http://10.0.0.11:8000/mcp"
TWO = "http://10.0.0.12:8000/mcp"
SIX = "https://[fd00::1]:443/a%20b/mcp"
DEFAULT_S = 300.0

CALL = RequestRecord(
    time_s=1_763_690_000.125,
    route="/weather/mcp",
    pool="weather",
    backend=ONE,
    era="legacy",
    http_method="POST",
    method="tools/call",
    name="get_forecast",
    kind="request",
    status=200,
    reason="",
    session="0a1b2c3d",
    peer="10.1.2.3",
    duration_s=0.0125,
    upstream_s=0.0120,
    bytes_in=300,
    bytes_out=900,
    is_stream=False,
    attempts=1,
    ended_by=Fault.NONE,
    phase=Phase.NONE,
)


def call(**changes: object) -> RequestRecord:
    return msgspec.structs.replace(CALL, **changes)


def backend(id: str, **facts: Any) -> BackendStatus:
    return msgspec.structs.replace(BackendStatus(id, True, 0, 0, 0), **facts)


class Operated(Registered):
    """Three backends in two pools; ``ONE`` is in both."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: dict[str, dict[str, BackendStatus]] = {
            "weather": {
                ONE: backend(ONE, sessions=3, inflight=1, streams=2, weight=2, era="legacy"),
                TWO: backend(TWO, up=False, state="down"),
            },
            "other": {ONE: backend(ONE, sessions=1, era="modern"), SIX: backend(SIX)},
        }
        self.level: Level = "info"
        self.ring = Ring()
        self.is_draining = False
        self.asked: list[tuple[str, str, str | None, float | None]] = []
        """Every order, in the words of the view."""
        self.questions = 0
        """How often somebody asked for what is recent."""
        self.broken: Exception | None = None
        """What every later question for it raises."""

    def set(self, pool: str, id: str, **facts: Any) -> BackendStatus:
        self.pools[pool][id] = msgspec.structs.replace(self.pools[pool][id], **facts)
        return msgspec.structs.replace(self.pools[pool][id], pool=pool)

    def _having(self, id: str, pool: str | None) -> list[str]:
        return [name for name, members in self.pools.items() if id in members and pool in (None, name)]

    # --- AdminView -------------------------------------------------------------------

    def status(self) -> Status:
        return Status(
            version="1.2.3",
            uptime_s=7384.5,
            pid=42,
            listen="127.0.0.1:8080",
            pools={name: PoolStatus(list(members.values())) for name, members in self.pools.items()},
            limits={"body": 4194304, "idle": None},
            counters={"requests": 7},
            draining=self.is_draining,
        )

    def configuration(self) -> dict[str, Any]:
        return {"listen": "127.0.0.1:8080", "admin": {"token": "[redacted]"}}

    def drain_proxy(self) -> None:
        self.asked.append(("drain_proxy", "", None, None))
        self.is_draining = True

    def log_level(self) -> Level:
        return self.level

    def set_log_level(self, level: Level) -> None:
        self.asked.append(("set_log_level", level, None, None))
        self.level = level

    async def recent(self, cursor: str) -> Recent:
        self.questions += 1
        if self.broken is not None:
            raise self.broken
        answer = self.ring.recent(cursor, now())
        return msgspec.structs.replace(answer, is_over=self.is_draining)

    async def drain_backend(
        self, backend_id: str, pool: str | None, seconds: float | None
    ) -> list[BackendStatus]:
        self.asked.append(("drain", backend_id, pool, seconds))
        left_s = DEFAULT_S if seconds is None else seconds
        return [
            self.set(
                name,
                backend_id,
                state="draining",
                drain=DrainStatus("operator", left_s, self.pools[name][backend_id].sessions),
            )
            for name in self._having(backend_id, pool)
        ]

    async def undrain_backend(self, backend_id: str, pool: str | None) -> list[BackendStatus]:
        self.asked.append(("undrain", backend_id, pool, None))
        return [self.set(name, backend_id, state="up", drain=None) for name in self._having(backend_id, pool)]
