"""The configuration as frozen values: keys, types and defaults of the Contract, nothing else.

Rules of this file: every model forbids unknown keys and cannot be changed; a default is written
the way a user would write it. What one value may look like is in ``values.py``; what must be true
of several values together is in ``checks.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from mcp_proxy.config import checks, files, values
from mcp_proxy.config.fields import (
    AffinityKey,
    AuthorityFile,
    BackendUrl,
    Count,
    Delay,
    Duration,
    ExternalUrl,
    Flag,
    Listen,
    LogFile,
    OptionalDuration,
    OptionalListen,
    OptionalSize,
    PemFile,
    ProxyUrl,
    RegistryUrl,
    RoutePath,
    SecretText,
    SessionKeyText,
    SessionStore,
    Size,
    Switch,
    TrustedNetwork,
)
from mcp_proxy.config.values import Invalid


def _written(text: str) -> Any:
    """A default in the words of the file; validated like everything else."""
    return Field(default=text)


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class AdminConfig(_Model):
    """The admin listener: health, metrics, status. ``admin: off`` is the same as ``listen: off``."""

    listen: OptionalListen = _written("127.0.0.1:9901")
    token: SecretText | None = None
    """Bearer token; required when others than this machine can reach the listener."""


class TlsConfig(_Model):
    """TLS of the public listener."""

    certificate: PemFile
    key: PemFile
    client_ca: AuthorityFile | None = None
    """Clients must show a certificate signed by one of these."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        files.check_pair(self.certificate, self.key)
        return self


class SessionsConfig(_Model):
    """Where it is written who owns a session."""

    store: SessionStore = "memory"
    """`memory`: one process. `redis`: replicas share a registry; a Redis URL here is short for it.
    `signed`: the session id says it, sealed with `keys`; with `url` only ends and moves are shared."""
    url: RegistryUrl | None = Field(default=None, repr=False)
    ttl: Duration = _written("2h")
    """Sliding; a session never expires under an open stream."""
    cache_ttl: Duration = _written("30s")
    """How long a replica believes what it knows of a session without asking Redis again."""
    keys: tuple[SessionKeyText, ...] = ()
    """The first seals session ids, all open them. Default with `signed`: env:MCP_PROXY_SESSION_KEY."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        store = data.get("store")
        if isinstance(store, str) and "://" in store:
            return data | {"store": "redis", "url": store}
        if store == "signed" and not data.get("keys"):
            return data | {"keys": [f"env:{values.SESSION_KEY_VARIABLE}"]}
        return data


class Limits(_Model):
    """Bounds of everything that a client or backend could make grow."""

    body: Size = _written("4MiB")
    """Largest request body."""
    head: Size = _written("32KiB")
    """Largest request head: request line and headers."""
    header_fields: Count = 100
    json_hold: Size = _written("1MiB")
    """A JSON answer is held until it is whole up to this size, streamed above it."""
    streams: Count = 10_000
    """Streams open at once."""
    head_timeout: Duration = _written("10s")
    """From the first byte of a request to the end of its head."""
    drain: Delay = _written("30s")
    """How long calls in progress may take to finish when the proxy stops."""


class BackendConfig(_Model):
    """One replica of an MCP server."""

    url: BackendUrl
    weight: Count = 1


class Timeouts(_Model):
    """How long to wait for a backend."""

    connect: Duration = _written("2s")
    response_head: OptionalDuration = _written("none")
    idle: OptionalDuration = _written("none")
    """Longest silence within a response body."""


class Credentials(_Model):
    """What the backend gets instead of the client's."""

    authorization: SecretText | None = None
    """The whole header value, for example `Bearer ...`."""


class UpstreamTls(_Model):
    """TLS towards backends; without it the system's certificate authorities decide."""

    ca: AuthorityFile | None = None
    certificate: PemFile | None = None
    """Shown to backends that ask for one; needs `key`."""
    key: PemFile | None = None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if self.certificate is not None and self.key is not None:
            files.check_pair(self.certificate, self.key)
        elif self.certificate is not self.key:
            given, absent = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise Invalid(f"there is a {given} but no {absent}", f"add {absent}, or remove {given}")
        return self


class AffinityConfig(_Model):
    """Which backend gets requests that belong to no session: 2026-07-28 has none, and still a task,
    a cursor or a `requestState` may be known to one replica only."""

    key: AffinityKey = "principal"
    """Requests with the same value go to the same backend while it is there; those without are balanced."""
    tap: OptionalSize = _written("off")
    """Look for task ids and request states in responses of up to this size, and remember their owner."""


def _url_only(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


Backend = Annotated[
    BackendConfig, BeforeValidator(_url_only, json_schema_input_type=BackendUrl | BackendConfig)
]


class PoolConfig(_Model):
    """Replicas of one MCP server."""

    backends: tuple[Backend, ...] = Field(min_length=1)
    balance: Literal["least_sessions", "round_robin"] = "least_sessions"
    affinity: AffinityConfig = Field(default_factory=AffinityConfig)
    on_backend_loss: Literal["end", "reinitialize"] = "end"
    """`end`: sessions of a lost backend get 404 and the client starts again. `reinitialize`: they are
    made anew at another backend, without the state that they had; for servers that need none."""
    lost_after: Duration = _written("10s")
    """Unreachable for so long means lost; until then 503 with Retry-After."""
    transport: Literal["http11", "httpx"] = "http11"
    timeouts: Timeouts = Field(default_factory=Timeouts)
    credentials: Credentials = Field(default_factory=Credentials)
    tls: UpstreamTls | None = None
    proxy: ProxyUrl | None = Field(default=None, repr=False)
    """Egress proxy (transport httpx); may hold a password, so it may come from env: or file:."""
    http2: Flag = False
    """Offer HTTP/2 to backends (transport httpx)."""


class RouteConfig(_Model):
    """Which pool answers on which path."""

    path: RoutePath
    pool: str


class TelemetryConfig(_Model):
    """What the proxy tells about its traffic."""

    access_log: Switch = "json"
    access_log_file: LogFile | None = None
    """Standard output when not given."""
    metrics: Flag = True


def _admin_word(value: object) -> object:
    return {"listen": "off"} if value is False or value == "off" else value


Admin = Annotated[
    AdminConfig, BeforeValidator(_admin_word, json_schema_input_type=Literal["off", False] | AdminConfig)
]


class Config(_Model):
    """Everything that one proxy process does. Built by ``load`` or directly; both are checked."""

    listen: Listen = _written("127.0.0.1:8080")
    admin: Admin = Field(default_factory=AdminConfig)
    external_url: ExternalUrl | None = None
    """What clients see when something stands in front of the proxy."""
    trusted_proxies: tuple[TrustedNetwork, ...] = ()
    """Whose X-Forwarded-* headers are believed."""
    tls: TlsConfig | None = None
    workers: Count = 1
    sessions: SessionsConfig = Field(default_factory=SessionsConfig)
    limits: Limits = Field(default_factory=Limits)
    pools: dict[str, PoolConfig] = Field(default_factory=dict)
    routes: tuple[RouteConfig, ...] = ()
    """May be left out when there is exactly one pool: `/mcp` leads to it."""
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)

    @model_validator(mode="before")
    @classmethod
    def _implied_route(cls, data: Any) -> Any:
        if isinstance(data, dict) and "routes" not in data:
            pools = data.get("pools")
            if isinstance(pools, dict) and len(pools) == 1:
                return data | {"routes": [{"path": values.DEFAULT_PATH, "pool": next(iter(pools))}]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        issues = checks.of(self)
        if issues:
            raise checks.Inconsistent(issues)
        return self
