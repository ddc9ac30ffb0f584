"""What may be in progress at once: in this process, for one client, for one principal, in memory.

Rules of this file: pure, but for one look at ``/proc`` a second. Nobody waits here: what is too much
is refused at once, and what is in progress is never touched.

A process keeps most of the memory that it has once had: after 3,000 streams came and went, RSS was as
high as with them, and the next 3,000 added nothing to it. So want of memory does not mean to take nobody
any more, which might be for ever, but not to take more at once than when it began.

Requests that free something, or whose refusal would do lasting harm, are never refused (``is_exempt``).
They need no limit of their own: a connection carries one request at a time, and connections are
limited.

Counts per client and per principal exist while something of theirs is in progress, so that they are
bounded by what is in progress.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from typing import Final

import msgspec

from mcp_proxy.envelope import Envelope, Kind
from mcp_proxy.routing import Plan
from mcp_proxy.wire import Rejection

logger = logging.getLogger("mcp_proxy")

LOOK_S: Final = 1.0
"""Between two looks at the memory. Streams that open within a second weigh some MB at most."""

ALL_AT: Final = 1.10
"""Of ``limits.memory``: from here on requests are held down as well, not only streams."""

SLACK: Final = 0.05
"""Of ``limits.memory``: so far below the line at which a refusal began it ends. Memory goes up and
down with every burst, and clients should not see that."""

FLOOR: Final = 8
"""So many streams, and so many requests, are taken for all the memory in use: a proxy that serves
nobody could only be killed. With the default limits eight requests and their answers weigh 40 MiB."""

PREFIX_BITS: Final = 64
"""Of an IPv6 address. A network of that size is what one customer gets: whoever has one address of it
has all of them (RFC 6177)."""

PREFIX_CACHE: Final = 4096
"""IPv6 addresses whose network is remembered; about 1 MiB."""


class Bounds(msgspec.Struct, frozen=True):
    """What one of many may have in progress; None: no limit but the common one."""

    streams: int | None = None
    requests: int | None = None


UNBOUNDED: Final = Bounds()


class Pressure(IntEnum):
    """What may not become more for want of memory."""

    NONE = 0
    STREAMS = 1
    ALL = 2


def pressure(used: int, limit: int, before: Pressure) -> Pressure:
    """What follows from ``used`` bytes of memory after ``before``."""
    for level, line in ((Pressure.ALL, limit * ALL_AT), (Pressure.STREAMS, float(limit))):
        if used > line or (before >= level and used > line - limit * SLACK):
            return level
    return Pressure.NONE


def is_exempt(plan: Plan, envelope: Envelope | None) -> bool:
    """The request must come through whatever else is in progress.

    Answers to the server's own requests let a call end that waits for them, ``notifications/cancelled``
    and DELETE end something, and no other notification could be repeated: nobody answers it. Clients
    whose ``server/discover`` is refused stay in the session era for good (Python SDK 2.3.0).
    """
    if plan.discover or plan.ends_session:
        return True
    if envelope is None or envelope.kind is Kind.REQUEST:
        return False
    return not any(envelope.methods)  # a batch may have requests in it, one of responses has none


def share_of(address: str) -> str:
    """Under which name what comes from ``address`` is counted; ``""`` stays that."""
    return _prefix(address) if ":" in address else address


@lru_cache(maxsize=PREFIX_CACHE)
def _prefix(address: str) -> str:
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), PREFIX_BITS), strict=False))


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None if the system does not say, or not now."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as statm:
            return int(statm.read(128).split()[1]) * _PAGE_BYTES
    except OSError:  # no such file, or no descriptor left to open it with
        return None


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class _Shares:
    """Counts by name. Nobody's, ``""``, are not counted."""

    __slots__ = ("_counts", "_limit", "_refusal")

    def __init__(self, key: str) -> None:
        self._limit: int | None = None
        self._counts: dict[str, int] = {}
        self._refusal = Rejection("too_many_requests", f"{key} is reached")

    def __len__(self) -> int:
        return len(self._counts)

    def limit(self, limit: int | None) -> None:
        self._limit = limit
        if limit is None:
            self._counts.clear()

    def refusal(self, name: str) -> Rejection | None:
        if self._limit is None or self._counts.get(name, 0) < self._limit:
            return None
        return self._refusal

    def take(self, name: str) -> None:
        if name and self._limit is not None:
            self._counts[name] = self._counts.get(name, 0) + 1

    def give_back(self, name: str) -> None:
        count = self._counts.get(name, 0)
        if count > 1:
            self._counts[name] = count - 1
        elif count:
            del self._counts[name]


class Quotas:
    """One per process. Whoever was let in by ``enter`` must ``leave`` exactly once, with the same
    arguments."""

    def __init__(
        self,
        *,
        streams: int,
        requests: int,
        per_client: Bounds = UNBOUNDED,
        per_principal: Bounds = UNBOUNDED,
        memory: int | None = None,
        resident: Callable[[], int | None] = resident_bytes,
    ) -> None:
        """``memory`` in bytes. ``resident`` is asked for them at most once in ``LOOK_S``."""
        self.streams = 0
        """Open or being opened."""
        self.requests = 0
        """In progress, streams not counted."""
        self.pressure = Pressure.NONE
        self._held_streams = self._held_requests = FLOOR
        """How many there may be under pressure."""
        self._client_streams = _Shares("limits.per_client.streams")
        self._client_requests = _Shares("limits.per_client.requests")
        self._principal_streams = _Shares("limits.per_principal.streams")
        self._principal_requests = _Shares("limits.per_principal.requests")
        self._resident = resident
        self._look_due_s = 0.0
        self.limit(streams, requests, per_client, per_principal, memory)

    def limit(
        self, streams: int, requests: int, per_client: Bounds, per_principal: Bounds, memory: int | None
    ) -> None:
        """Other limits from now on. What is in progress stays, even above them. What came in while there
        was no limit per client or principal is not counted for them."""
        self.streams_limit = streams
        self.requests_limit = requests
        self._client_streams.limit(per_client.streams)
        self._client_requests.limit(per_client.requests)
        self._principal_streams.limit(per_principal.streams)
        self._principal_requests.limit(per_principal.requests)
        self.has_shares = not (per_client == per_principal == UNBOUNDED)
        self._memory = memory
        if memory is None:
            self.pressure = Pressure.NONE
        self._ease()

    def __repr__(self) -> str:
        clients = len(self._client_streams) + len(self._client_requests)
        principals = len(self._principal_streams) + len(self._principal_requests)
        counts = f"streams={self.streams} requests={self.requests}"
        return f"<Quotas {counts} clients={clients} principals={principals} {self.pressure.name.lower()}>"

    # ``has_shares`` and ``easy_requests`` are for whoever counts most requests in and out without a call:
    # one that is no stream may come in while there are fewer than ``easy_requests``, and one that did may go
    # without ``leave`` while there are no shares. ``requests`` is theirs to change then.

    def enter(self, plan: Plan, envelope: Envelope | None, client: str, principal: str) -> Rejection | None:
        """Count a request in, or say why not. ``client``: its address; either name may be empty."""
        if plan.listens:
            return self._enter_stream(share_of(client), principal)
        if self.requests >= self.easy_requests and not is_exempt(plan, envelope):
            refusal = self._enter_request(share_of(client), principal)
            if refusal is not None:
                return refusal
        self.requests += 1
        return None

    def leave(self, plan: Plan, envelope: Envelope | None, client: str, principal: str) -> None:
        """What ``enter`` counted in is over."""
        if plan.listens:
            self.streams -= 1
            self._client_streams.give_back(share_of(client))
            self._principal_streams.give_back(principal)
            return
        self.requests -= 1
        if self.has_shares and not is_exempt(plan, envelope):
            self._client_requests.give_back(share_of(client))
            self._principal_requests.give_back(principal)

    def sweep(self, at_s: float) -> None:
        """Look how much memory is in use; a job for the Ticker."""
        if self._memory is None or at_s < self._look_due_s:
            return
        self._look_due_s = at_s + LOOK_S
        used = self._resident()
        if used is None:
            return  # what was true a second ago is the best guess
        before, self.pressure = self.pressure, pressure(used, self._memory, self.pressure)
        if self.pressure > before:
            self._held_streams = max(self.streams, FLOOR)
            self._held_requests = max(self.requests, FLOOR)
        if self.pressure is not before:
            self._ease()
            self._report(used, self._memory, is_worse=self.pressure > before)

    # --- internals -------------------------------------------------------------------

    def _ease(self) -> None:
        """Work out how many streams and requests there may be now."""
        self._streams_now, self._requests_now = self.streams_limit, self.requests_limit
        if self.pressure:
            self._streams_now = min(self.streams_limit, self._held_streams)
        if self.pressure is Pressure.ALL:
            self._requests_now = min(self.requests_limit, self._held_requests)
        self.easy_requests = 0 if self.has_shares else self._requests_now

    def _report(self, used: int, limit: int, *, is_worse: bool) -> None:
        if self.pressure is Pressure.NONE:
            what = "as many streams and requests as ever"
        elif self.pressure is Pressure.STREAMS:
            what = f"at most {self._streams_now} streams"
        else:
            what = f"at most {self._streams_now} streams and {self._requests_now} requests"
        level = logging.WARNING if is_worse else logging.INFO
        logger.log(level, "%d MiB in use, limits.memory is %d MiB: %s", used >> 20, limit >> 20, what)

    def _enter_stream(self, client: str, principal: str) -> Rejection | None:
        if self.streams >= self._streams_now:
            return _STREAMS if self.streams >= self.streams_limit else _MEMORY
        refusal = self._client_streams.refusal(client) or self._principal_streams.refusal(principal)
        if refusal is None:
            self._client_streams.take(client)
            self._principal_streams.take(principal)
            self.streams += 1
        return refusal

    def _enter_request(self, client: str, principal: str) -> Rejection | None:
        if self.requests >= self._requests_now:
            return _REQUESTS if self.requests >= self.requests_limit else _MEMORY
        refusal = self._client_requests.refusal(client) or self._principal_requests.refusal(principal)
        if refusal is None:
            self._client_requests.take(client)
            self._principal_requests.take(principal)
        return refusal


_STREAMS: Final = Rejection("overloaded", "limits.streams is reached")
_REQUESTS: Final = Rejection("overloaded", "limits.requests is reached")
_MEMORY: Final = Rejection("overloaded", "limits.memory is exceeded")
