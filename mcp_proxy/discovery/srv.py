"""Backends of SRV records: each with its port and its weight (RFC 2782).

Rules of this file: the one file that knows dnspython. A target is reached at its IPv4 addresses, or at
those of IPv6 if it has no others: it is one backend per address, and a replica must not count twice.
Addresses that came along with the records are not asked for again. Only the best priority that has an
address is used: the others are spares, which balancing does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

from mcp_proxy.backends import WEIGHT_LIMIT, Endpoint
from mcp_proxy.discovery import Answer, LookError, merged
from mcp_proxy.discovery.polled import Polled
from mcp_proxy.errors import StartupError

try:
    from dns.asyncresolver import Resolver
    from dns.exception import DNSException, Timeout
    from dns.message import Message
    from dns.name import Name
    from dns.rdataclass import IN
    from dns.rdatatype import AAAA, SRV, A, RdataType
    from dns.resolver import NXDOMAIN, NoAnswer
    from dns.rrset import RRset
except ImportError as error:
    raise StartupError("discover.srv needs the extra dns: pip install 'mcp-reverse-proxy[dns]'") from error

LOOK_S: Final = 5.0
"""For one question, all name servers and repetitions included."""


class SrvSource(Polled):
    """``resolver`` is whom to ask; None: as /etc/resolv.conf says at each look."""

    def __init__(
        self,
        name: str,
        *,
        path: str = "/mcp",
        tls: bool = False,
        every_s: float = 5.0,
        resolver: Resolver | None = None,
    ) -> None:
        super().__init__(f"srv {name}", self._ask, every_s)
        self._record = name
        self._path = path
        self._tls = tls
        self._resolver = resolver

    async def _ask(self) -> Answer:
        try:
            return await self._find(self._resolver or _of_the_system())
        except Timeout as error:
            raise LookError("no name server answers") from error
        except (DNSException, OSError) as error:
            raise LookError("the record cannot be looked up", str(error)) from error

    async def _find(self, resolver: Resolver) -> Answer:
        try:
            answer = await resolver.resolve(self._record, SRV, search=True)
        except (NXDOMAIN, NoAnswer):
            return Answer(())
        ttl: float = answer.rrset.ttl if answer.rrset is not None else 0
        records = sorted(answer, key=_priority)
        for _, best in groupby(records, key=_priority):
            endpoints, ttl = await self._reach(resolver, list(best), answer.response, ttl)
            if endpoints:
                return Answer(merged(endpoints), ttl)
        return Answer((), ttl)

    async def _reach(
        self, resolver: Resolver, records: list[Any], response: Message, ttl: float
    ) -> tuple[list[Endpoint], float]:
        """Endpoints of records of one priority, and the least TTL."""
        endpoints: list[Endpoint] = []
        for record in records:
            addresses = _came_along(response, record.target) or await _addresses(resolver, record.target)
            if addresses is None:
                continue
            ttl = min(ttl, addresses.ttl)
            weight = min(max(record.weight, 1), WEIGHT_LIMIT)
            endpoints += (
                Endpoint(host, record.port, self._path, self._tls, weight) for host in _texts(addresses)
            )
        return endpoints, ttl


def _of_the_system() -> Resolver:
    resolver = Resolver()
    resolver.lifetime = LOOK_S
    return resolver


def _priority(record: Any) -> int:
    return int(record.priority)


def _texts(addresses: RRset) -> Iterable[str]:
    return (str(record.address) for record in addresses)


def _came_along(response: Message, target: Name) -> RRset | None:
    for kind in (A, AAAA):
        found = response.get_rrset(response.additional, target, IN, kind)
        if found:
            return found
    return None


async def _addresses(resolver: Resolver, target: Name) -> RRset | None:
    """None: it certainly has none. ``.`` is RFC 2782's way to say that there is no such service."""
    if len(target) <= 1:
        return None
    return await _address(resolver, target, A) or await _address(resolver, target, AAAA)


async def _address(resolver: Resolver, target: Name, kind: RdataType) -> RRset | None:
    try:
        answer = await resolver.resolve(target, kind)
    except (NXDOMAIN, NoAnswer):
        return None
    return answer.rrset
