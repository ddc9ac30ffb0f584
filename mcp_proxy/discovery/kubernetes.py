"""Backends of a Service of Kubernetes: its EndpointSlices, listed and then watched.

Rules of this file: the one file that knows lightkube, and httpx2 below it. A look is a connection of its
own: list everything, then watch from there, until the watch ends for whatever reason; then the next look
lists again. So nothing is published that was not listed whole, an expired resourceVersion (410 Gone) is
nothing special, and a pod's renewed credentials are read. The library would begin a watch that has ended
again, at once and for ever; ``_Wire`` allows it one.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Final, cast

from mcp_proxy.backends import Publish
from mcp_proxy.clock import now
from mcp_proxy.discovery import LookError
from mcp_proxy.discovery.findings import Findings
from mcp_proxy.discovery.pace import Backoff, PacedWait
from mcp_proxy.discovery.slices import Member, Port, Slice, endpoints_of
from mcp_proxy.errors import StartupError

try:
    import httpx2
    from lightkube import AsyncClient, KubeConfig
    from lightkube.config.client_adapter import verify_cluster
    from lightkube.config.kubeconfig import SERVICE_ACCOUNT
    from lightkube.core.exceptions import ApiError, ConfigError
    from lightkube.models import discovery_v1
    from lightkube.resources.discovery_v1 import EndpointSlice
except ImportError as error:
    raise StartupError(
        "discover.kubernetes needs the extra kubernetes: pip install 'mcp-reverse-proxy[kubernetes]'"
    ) from error

WATCH_S: Final = 120.0
"""Then it is listed again: a watch whose connection has died without a word looks like a quiet one."""

LIST_S: Final = 10.0
"""To connect, and to get the whole list."""

PAGE: Final = 500
"""Slices per answer, as kubectl does it; each has up to 1,000 endpoints."""

SERVICE_LABEL: Final = "kubernetes.io/service-name"

GONE: Final = 410


class KubernetesSource:
    """Implements Source. ``namespace`` None: that of the pod's service account, or of the current context
    of the kubeconfig. ``draw`` returns a number from 0 to 1."""

    def __init__(
        self,
        service: str,
        namespace: str | None = None,
        *,
        port: int | str | None = None,
        path: str = "/mcp",
        tls: bool = False,
        service_account: str = SERVICE_ACCOUNT,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._service = service
        self._namespace = namespace
        self._port = port
        self._path = path
        self._tls = tls
        self._service_account = service_account
        self._draw = draw
        self._findings = Findings(f"kubernetes {namespace + '/' if namespace else ''}{service}")
        self._wait = PacedWait()
        self._backoff = Backoff(draw)
        self._alarm: asyncio.Timeout | None = None
        """While it watches: when to stop that and to list again."""

    async def run(self, publish: Publish) -> None:
        self._findings.publish = publish
        while True:
            await self._wait.until_due()
            self._wait.pace.start(now())
            wait_s = await self._turn()
            self._wait.pace.done(now(), wait_s)

    def refresh(self) -> None:
        self._wait.ask()
        self._stop_at(self._wait.pace.soonest_s)

    def health(self) -> tuple[bool, str]:
        return self._findings.health()

    # --- one look --------------------------------------------------------------------

    async def _turn(self) -> float:
        """List, and watch as long as that goes; how long to wait then."""
        started_s = now()
        try:
            await self._look()
        except _WatchOverError:
            return self._backoff.ended(now() - started_s)
        except LookError as error:
            self._findings.failed(str(error), error.detail)
        except Exception as error:
            # A library that surprises us must not end the search for ever.
            self._findings.failed("the Kubernetes API cannot be asked", repr(error))
        else:
            self._backoff.worked()
            return 0.0
        return self._backoff.failed()

    async def _look(self) -> None:
        try:
            async with self._connect() as client:
                slices, version = await self._list(client)
                self._found(slices.values())
                await self._watch(client, slices, version)
        except httpx2.HTTPStatusError as error:
            raise self._refusal(error) from error
        except httpx2.HTTPError as error:
            raise LookError("the Kubernetes API cannot be reached", repr(error)) from error

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[AsyncClient]:
        # In a thread: reads files, and loads the certificates of authorities.
        client = await asyncio.to_thread(self._open)
        try:
            yield client
        finally:
            await client.close()

    def _open(self) -> AsyncClient:
        try:
            config = KubeConfig.from_env(service_account=self._service_account).get()
            if config is None or config.user is None:
                raise ConfigError("the current context names no user")
        except (ConfigError, KeyError) as error:
            message = "no access to a Kubernetes API is configured (no service account, no kubeconfig)"
            raise LookError(message, repr(error)) from error
        verify = verify_cluster(config.cluster, config.user, config.abs_file)
        wire = _Wire(self._findings.succeeded, verify)
        return AsyncClient(config, transport=wire, timeout=httpx2.Timeout(LIST_S))

    async def _list(self, client: AsyncClient) -> tuple[dict[str, Slice], str]:
        listing = client.list(
            EndpointSlice, namespace=self._namespace, labels={SERVICE_LABEL: self._service}, chunk_size=PAGE
        )
        try:
            async with asyncio.timeout(LIST_S):
                slices = {_name(item): _slice(item) async for item in listing}
        except TimeoutError as error:
            raise LookError("the Kubernetes API does not answer") from error
        return slices, listing.resourceVersion

    async def _watch(self, client: AsyncClient, slices: dict[str, Slice], version: str) -> None:
        """Returns when it is time to list again."""
        watch = client.watch(
            EndpointSlice,
            namespace=self._namespace,
            labels={SERVICE_LABEL: self._service},
            resource_version=version,
        )
        events = cast("AsyncGenerator[tuple[str, EndpointSlice], None]", watch)
        try:
            async with asyncio.timeout(WATCH_S * (1 - self._draw() / 4)) as self._alarm, aclosing(events):
                self._settle_soon()
                async for kind, item in events:
                    self._apply(slices, kind, item)
        except TimeoutError:
            return
        except httpx2.TransportError as error:
            # Cut off. If that is more than the end of a connection, the next list will say so.
            raise _WatchOverError from error
        finally:
            self._alarm = None

    def _apply(self, slices: dict[str, Slice], kind: str, item: EndpointSlice) -> None:
        if kind == "DELETED":
            slices.pop(_name(item), None)
        elif kind in ("ADDED", "MODIFIED"):
            slices[_name(item)] = _slice(item)
        else:
            return  # a bookmark: only its resourceVersion is news, and the library reads that
        self._found(slices.values())
        self._settle_soon()

    # --- what it says ----------------------------------------------------------------

    def _found(self, slices: Iterable[Slice]) -> None:
        self._findings.found(endpoints_of(slices, self._port, path=self._path, tls=self._tls), now())

    def _settle_soon(self) -> None:
        """A doubt is settled by listing again, and what was asked for meanwhile is done."""
        if self._findings.recheck_s is not None:
            self._stop_at(now() + self._findings.recheck_s)
        if self._wait.pace.is_asked:
            self._stop_at(self._wait.pace.soonest_s)

    def _stop_at(self, at_s: float) -> None:
        if self._alarm is None or self._alarm.expired():
            return
        at_s += asyncio.get_running_loop().time() - now()
        when = self._alarm.when()
        if when is None or at_s < when:
            self._alarm.reschedule(at_s)

    def _refusal(self, error: httpx2.HTTPStatusError) -> Exception:
        """What a status of the API means, of an answer or inside a watch."""
        code = error.status.code if isinstance(error, ApiError) else error.response.status_code
        if code == GONE:
            return _WatchOverError()
        if code == 401:
            return LookError("the Kubernetes API does not know the proxy (401)", str(error))
        if code == 403:
            return LookError(
                "the proxy may not see EndpointSlices (403): bind its service account to a Role with"
                " apiGroups [discovery.k8s.io], resources [endpointslices], verbs [get, list, watch]"
            )
        return LookError(f"the Kubernetes API answers {code}", str(error))


class _WatchOverError(Exception):
    """It has ended, which watches do."""


class _Wire(httpx2.AsyncHTTPTransport):
    """Carries one watch. ``on_watch`` is called when that has begun."""

    def __init__(self, on_watch: Callable[[], None], verify: ssl.SSLContext) -> None:
        super().__init__(verify=verify, trust_env=False)
        self._on_watch = on_watch
        self._has_watched = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if "watch" not in request.url.params:
            return await super().handle_async_request(request)
        if self._has_watched:
            raise _WatchOverError
        self._has_watched = True
        response = await super().handle_async_request(request)
        if response.status_code == 200:
            self._on_watch()
        return response


def _name(item: EndpointSlice) -> str:
    assert item.metadata is not None
    assert item.metadata.name is not None
    return item.metadata.name


def _slice(item: EndpointSlice) -> Slice:
    ports = (
        Port(port.port, port.name or "")
        for port in item.ports or ()
        if port.port is not None and port.protocol in (None, "TCP")
    )
    return Slice(item.addressType, tuple(ports), tuple(map(_member, item.endpoints or ())))


def _member(endpoint: discovery_v1.Endpoint) -> Member:
    conditions = endpoint.conditions or discovery_v1.EndpointConditions()
    return Member(
        endpoint.addresses[0],
        conditions.ready,
        conditions.serving,
        conditions.terminating,
        endpoint.targetRef.uid if endpoint.targetRef else None,
    )
