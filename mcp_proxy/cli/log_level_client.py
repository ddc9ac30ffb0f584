"""What ``/log-level`` of the admin listener is asked."""

from __future__ import annotations

import msgspec

from mcp_proxy.cli.admin_client import Admin


class LogLevel(msgspec.Struct):
    level: str


def ask(admin: Admin, level: str | None) -> str:
    """The level in force, after it was changed to ``level`` if there is one. Raises AdminError."""
    if level is None:
        return admin.ask(LogLevel, "GET", "/log-level").level
    order = msgspec.json.encode(LogLevel(level))
    return admin.ask(LogLevel, "PUT", "/log-level", content=[order], content_type="application/json").level
