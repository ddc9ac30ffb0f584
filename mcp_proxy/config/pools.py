"""Pools: where the replicas of a server are, and how to choose, judge, reach and release them.

Rules of this file: those of ``base.py``. What must be true of several keys together is in
``pool_checks.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mcp_proxy.config import files
from mcp_proxy.config.addresses import DEFAULT_PATH
from mcp_proxy.config.base import FileModel, Model, one_of, written
from mcp_proxy.config.fields import (
    AffinityKey,
    AuthorityFile,
    BackendUrl,
    CheckKind,
    Count,
    DiscoveryName,
    Duration,
    Flag,
    OptionalDuration,
    OptionalSize,
    PemFile,
    PortReference,
    ProxyUrl,
    RoutePath,
    SecretText,
    Share,
    Weight,
    off_is_none,
)
from mcp_proxy.config.values import Invalid


class BackendConfig(Model):
    """One replica of an MCP server."""

    url: BackendUrl
    """The MCP endpoint of the replica."""
    weight: Weight = 1
    """Its share of what is balanced, beside the weights of the others."""


class Timeouts(Model):
    """How long to wait for a backend."""

    connect: Duration = written("2s")
    """Until there is a connection, the handshake of TLS included."""
    response_head: OptionalDuration = written("none")
    """Until the head of an answer has come; then 504. Servers may take as long as their slowest tool."""
    idle: OptionalDuration = written("none")
    """Longest silence within a response body."""


class Credentials(Model):
    """What the backend gets instead of the client's."""

    authorization: SecretText | None = None
    """The whole header value, for example `Bearer ...`."""


class UpstreamTls(FileModel):
    """TLS towards backends; without it the system's certificate authorities decide."""

    ca: AuthorityFile | None = None
    """Authorities that sign the certificates of the backends, instead of the system's."""
    certificate: PemFile | None = None
    """Shown to backends that ask for one; needs `key`."""
    key: PemFile | None = None
    """The private key of `certificate`, without a passphrase."""
    server_name: DiscoveryName | None = None
    """Name that the certificates of the backends must have. By default the host of the URL; with `discover`
    the name that was asked for."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if self.certificate is not None and self.key is not None:
            files.check_pair(self.certificate, self.key)
        elif self.certificate is not self.key:
            given, absent = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise Invalid(f"there is a {given} but no {absent}", f"add {absent}, or remove {given}")
        return self


class AffinityConfig(Model):
    """Which backend gets requests that belong to no session: 2026-07-28 has none, and still a task,
    a cursor or a `requestState` may be known to one replica only."""

    key: AffinityKey = "principal"
    """Requests with the same value go to the same backend while it is there; those without are balanced."""
    tap: OptionalSize = written("off")
    """Look for task ids and request states in responses of up to this size, and remember their owner."""


class KubernetesService(Model):
    """The Service whose EndpointSlices name the backends; a headless one, or any other."""

    service: DiscoveryName
    """Name of the Service."""
    namespace: DiscoveryName | None = None
    """That of the proxy's own pod when not given."""


class DiscoverConfig(Model):
    """Where a pool finds its backends: one of `dns`, `srv` and `kubernetes`."""

    model_config = one_of("dns", "srv", "kubernetes")

    dns: DiscoveryName | None = None
    """Every A and AAAA record of this name is a backend on `port`, as of a headless Service."""
    srv: DiscoveryName | None = None
    """Every SRV record is a backend, with its port and weight (extra `dns`)."""
    kubernetes: KubernetesService | None = None
    """EndpointSlices of a Service, watched (extra `kubernetes`)."""
    port: PortReference | None = None
    """Needed with `dns`; with `kubernetes` number or name, and only if the Service has several."""
    path: RoutePath = DEFAULT_PATH
    """Path of the MCP endpoint of each backend that is found."""
    tls: Flag = False
    """Speak https to the backends that are found."""
    every: Duration = written("5s")
    """Between two look-ups of `dns` or `srv`."""


class ActiveConfig(Model):
    """Checks that the proxy makes on its own account."""

    check: CheckKind = "tcp"
    """`tcp`: connect. A path, such as `/healthz`: GET it, 2xx is well. `discover`: a `server/discover` of
    2026-07-28. Never GET, HEAD or OPTIONS of the MCP path: each would make a session."""
    every: Duration = written("5s")
    """Between two checks of a backend."""
    timeout: Duration = written("2s")
    """A check that takes longer has failed. At most `every`."""
    fall: Count = 3
    """So many failures in a row make it unhealthy."""
    rise: Count = 2
    """So many successes in a row make it healthy again."""


class EjectConfig(Model):
    """When a backend that fails is left out for a while. Sessions that it has stay with it."""

    after: Count = 5
    """Failures in a row: connects, 5xx, timeouts."""
    for_: Duration = written("30s", key="for")
    """The first time; each time after that twice as long as before, up to ten times."""
    at_most: Share = written("50%")
    """Of the pool's backends."""


class HealthConfig(Model):
    """How a pool finds out which backends work."""

    active: Annotated[
        ActiveConfig | None,
        BeforeValidator(off_is_none, json_schema_input_type=ActiveConfig | Literal["off", False] | None),
    ] = None
    """Off when not given: backends are judged by their traffic, and looked for when they are away."""
    eject: Annotated[
        EjectConfig | None,
        BeforeValidator(off_is_none, json_schema_input_type=EjectConfig | Literal["off", False] | None),
    ] = Field(default_factory=EjectConfig)
    """Leave out backends that fail; `off`: never."""


def _url_only(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


Backend = Annotated[
    BackendConfig, BeforeValidator(_url_only, json_schema_input_type=BackendUrl | BackendConfig)
]


class PoolConfig(Model):
    """Replicas of one MCP server."""

    model_config = one_of("backends", "discover")

    backends: tuple[Backend, ...] = ()
    """URLs of the replicas, or `{url, weight}` each."""
    discover: DiscoverConfig | None = None
    """Instead of `backends`."""
    balance: Literal["least_sessions", "least_inflight", "round_robin", "hash"] = "least_sessions"
    """`least_sessions`: new sessions go where the fewest are, other requests as with `least_inflight`.
    `least_inflight`: the better of two, drawn at random. `hash`: by the value of `affinity.key`."""
    slow_start: OptionalDuration = written("none")
    """How long the share of a backend grows that has come, or has come back."""
    era: Literal["any", "legacy", "modern", "probe"] = "any"
    """`modern`: speaks 2026-07-28. `probe`: each backend is asked, and requests of that era go only to
    those that speak it."""
    health: HealthConfig = Field(default_factory=HealthConfig)
    """How the pool finds out which backends work."""
    drain: Duration = written("5m")
    """How long the sessions and streams of a backend that leaves may go on."""
    affinity: AffinityConfig = Field(default_factory=AffinityConfig)
    """Which backend gets requests that belong to no session."""
    on_backend_loss: Literal["end", "reinitialize"] = "end"
    """`end`: sessions of a lost backend get 404 and the client starts again. `reinitialize`: they are
    made anew at another backend, without the state that they had; for servers that need none."""
    lost_after: Duration = written("10s")
    """Unreachable for so long means lost; until then 503 with Retry-After."""
    unknown_after: Duration = written("60s")
    """The same for a backend of which only other replicas have heard: so long may configuration or discovery
    take to reach all of them."""
    transport: Literal["http11", "httpx"] = "http11"
    """How backends are spoken to. `httpx` knows HTTP/2 and egress proxies and needs several times the CPU."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    """How long to wait for a backend."""
    credentials: Credentials = Field(default_factory=Credentials)
    """What backends get instead of the client's own."""
    tls: UpstreamTls | None = None
    """TLS towards backends whose URL is https."""
    proxy: ProxyUrl | None = Field(default=None, repr=False)
    """Egress proxy (transport httpx); may hold a password, so it may come from env: or file:."""
    http2: Flag = False
    """Offer HTTP/2 to backends (transport httpx, extra `http2`)."""
