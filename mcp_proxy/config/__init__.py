"""The configuration: frozen values, and ``load``, which builds them from file, variables and flags."""

from __future__ import annotations

from mcp_proxy.config.loader import Loaded, load, read
from mcp_proxy.config.models import (
    AdminConfig,
    BackendConfig,
    Config,
    Credentials,
    Limits,
    PoolConfig,
    RouteConfig,
    SessionsConfig,
    TelemetryConfig,
    Timeouts,
    TlsConfig,
    UpstreamTls,
)
from mcp_proxy.config.problems import ConfigErrors, Problem
from mcp_proxy.config.secret import Secret
from mcp_proxy.config.values import Address

__all__ = [
    "Address",
    "AdminConfig",
    "BackendConfig",
    "Config",
    "ConfigErrors",
    "Credentials",
    "Limits",
    "Loaded",
    "PoolConfig",
    "Problem",
    "RouteConfig",
    "Secret",
    "SessionsConfig",
    "TelemetryConfig",
    "Timeouts",
    "TlsConfig",
    "UpstreamTls",
    "load",
    "read",
]
