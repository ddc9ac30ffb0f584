"""The configuration as frozen values: keys, types and defaults of the Contract, nothing else.

Rules of this file: those of ``base.py``. Pools are in ``pools.py``. What one value may look like is in
``values.py`` and its neighbours; what must be true of several values together is in ``checks.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mcp_proxy.config import checks, files
from mcp_proxy.config.addresses import DEFAULT_PATH
from mcp_proxy.config.base import FileModel, Model, written
from mcp_proxy.config.fields import (
    AuthorityFile,
    CollectorUrl,
    Count,
    Delay,
    Duration,
    ExternalUrl,
    Flag,
    HeaderName,
    Listen,
    LogFile,
    OptionalCount,
    OptionalListen,
    OptionalSize,
    PemFile,
    Ratio,
    RegistryUrl,
    RoutePath,
    SecretText,
    ServiceName,
    SessionKeyText,
    SessionStore,
    Size,
    Switch,
    TrustedNetwork,
    off_is_none,
)
from mcp_proxy.config.pools import PoolConfig
from mcp_proxy.config.values import SESSION_KEY_VARIABLE


class AdminConfig(Model):
    """The admin listener: health, metrics, status. ``admin: off`` is the same as ``listen: off``."""

    listen: OptionalListen = written("127.0.0.1:9901")
    """Where the admin listener is bound; `off`: there is none."""
    token: SecretText | None = None
    """Bearer token; required when others than this machine can reach the listener."""
    metrics_token: SecretText | None = None
    """Another one, which opens `/metrics` and nothing else: whoever scrapes need not be able to drain."""


class TlsConfig(FileModel):
    """TLS of the public listener."""

    certificate: PemFile
    """The certificate, with its chain behind it. Read anew when the file changes."""
    key: PemFile
    """The private key of `certificate`, without a passphrase."""
    client_ca: AuthorityFile | None = None
    """Clients must show a certificate signed by one of these."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        files.check_pair(self.certificate, self.key)
        return self


class SessionsConfig(Model):
    """Where it is written who owns a session."""

    store: SessionStore = "memory"
    """`memory`: one process. `redis`: replicas share a registry; a Redis URL here is short for it.
    `signed`: the session id says it, sealed with `keys`; with `url` only ends and moves are shared."""
    url: RegistryUrl | None = Field(default=None, repr=False)
    """The Redis that replicas share. Needed with `redis`; with `signed` it shares ends and moves."""
    ttl: Duration = written("2h")
    """Sliding; a session never expires under an open stream."""
    cache_ttl: Duration = written("30s")
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
            return data | {"keys": [f"env:{SESSION_KEY_VARIABLE}"]}
        return data


class ClientLimits(Model):
    """What one client address, or one principal, may have at once; more is answered with 429."""

    streams: OptionalCount = None
    """Streams open at once."""
    requests: OptionalCount = None
    """Requests in progress at once, streams not counted."""


class AddressLimits(ClientLimits):
    """What one client address may have at once; behind trusted proxies the address that they name."""

    connections: OptionalCount = None
    """Of clients that connect themselves: connections of trusted proxies carry everybody's requests."""


class Limits(Model):
    """Bounds of everything that a client or backend could make grow."""

    body: Size = written("4MiB")
    """Largest request body."""
    head: Size = written("32KiB")
    """Largest request head: request line and headers."""
    header_fields: Count = 100
    """Header fields of a request."""
    json_hold: Size = written("1MiB")
    """A JSON answer is held until it is whole up to this size, streamed above it."""
    streams: Count = 10_000
    """Streams open at once, of all workers together; one more gets 503. Never more than three quarters of the
    connections that the file limit allows."""
    requests: Count = 10_000
    """Requests in progress at once, of all workers together, streams not counted; one more gets 503."""
    per_client: AddressLimits = Field(default_factory=AddressLimits)
    """Shares of one client address, or of one IPv6 network of 64 bits."""
    per_principal: ClientLimits = Field(default_factory=ClientLimits)
    """Shares of one authenticated principal; without authentication nobody has one."""
    memory: OptionalSize = written("off")
    """Resident memory of a process above which it takes no more streams than it has; above 110 % no more
    requests either."""
    head_timeout: Duration = written("10s")
    """From the first byte of a request to the end of its head."""
    drain: Delay = written("30s")
    """How long calls in progress may take to finish when the proxy stops."""
    drain_delay: Delay = written("0s")
    """How long a stopping proxy still takes new connections: what stands in front needs that long to see
    that it is not ready."""


class RouteConfig(Model):
    """Which pool answers on which path."""

    path: RoutePath
    """Compared byte for byte with the path that clients ask for; a query is passed on."""
    pool: str
    """Name of the pool that answers."""


class TracesConfig(Model):
    """Spans of requests, sent to a collector over OTLP/HTTP (extra `otlp`)."""

    endpoint: CollectorUrl
    """The collector."""
    sample: Ratio = 0.01
    """Of the traces that begin here. Whether others are recorded is what `traceparent` says."""
    limit: OptionalCount = 500
    """Exchanges recorded in a second by a process, whoever asks for it: the sampled flag of `traceparent` is
    the word of any client."""
    headers: dict[HeaderName, SecretText] = Field(default_factory=dict)
    """Sent to the collector, for example `authorization`."""
    timeout: Duration = written("10s")
    """How long to try to send a batch; then it is lost, and counted."""
    service_name: ServiceName = "mcp-proxy"
    """`service.name` of the spans."""


class TelemetryConfig(Model):
    """What the proxy tells about its traffic."""

    log: Literal["text", "json"] = "text"
    """The application log, on standard error: for people, or one JSON object per line."""
    access_log: Switch = "json"
    """One JSON object for each exchange that has ended."""
    access_log_file: LogFile | None = None
    """Standard output when not given. Opened anew on SIGUSR1."""
    metrics: Flag = True
    """Measure requests and answer `/metrics`; else it is 404."""
    traces: Annotated[
        TracesConfig | None,
        BeforeValidator(off_is_none, json_schema_input_type=TracesConfig | Literal["off", False] | None),
    ] = None
    """Off when not given."""


def _admin_word(value: object) -> object:
    return {"listen": "off"} if value is False or value == "off" else value


Admin = Annotated[
    AdminConfig, BeforeValidator(_admin_word, json_schema_input_type=Literal["off", False] | AdminConfig)
]


class Config(Model):
    """Everything that one proxy process does. Built by ``load`` or directly; both are checked."""

    listen: Listen = written("127.0.0.1:8080")
    """Where clients connect."""
    admin: Admin = Field(default_factory=AdminConfig)
    """The admin listener, or `off`."""
    external_url: ExternalUrl | None = None
    """What clients see when something stands in front of the proxy. Its host may stand in `Host`, and its
    origin in `Origin`."""
    trusted_proxies: tuple[TrustedNetwork, ...] = ()
    """Peers whose X-Forwarded-* headers and X-Request-Id are believed."""
    tls: TlsConfig | None = None
    """TLS of the public listener; without it clients speak plain HTTP."""
    workers: Count = 1
    """Processes that share the listener. More than one needs `sessions.store` to be `redis` or `signed`."""
    sessions: SessionsConfig = Field(default_factory=SessionsConfig)
    """Where it is written who owns a session."""
    limits: Limits = Field(default_factory=Limits)
    """Bounds of everything that a client or backend could make grow."""
    pools: dict[str, PoolConfig] = Field(default_factory=dict)
    """Replicas of each MCP server, by a name of at most 63 letters, digits, `-`, `_` and `.`."""
    routes: tuple[RouteConfig, ...] = ()
    """May be left out when there is exactly one pool: `/mcp` leads to it."""
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
    """What the proxy tells about its traffic."""

    @model_validator(mode="before")
    @classmethod
    def _implied_route(cls, data: Any) -> Any:
        if isinstance(data, dict) and "routes" not in data:
            pools = data.get("pools")
            if isinstance(pools, dict) and len(pools) == 1:
                return data | {"routes": [{"path": DEFAULT_PATH, "pool": next(iter(pools))}]}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        issues = checks.of(self)
        if issues:
            raise checks.Inconsistent(issues)
        return self
