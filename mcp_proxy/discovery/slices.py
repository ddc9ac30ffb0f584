"""What the EndpointSlices of a Service say about backends.

Rules of this file: pure, and without the library. All slices count, in any order, and the same endpoint
may be in several of them (the controller moves endpoints without a transaction). Nil conditions are read as
the API says: ``ready`` and ``serving`` true, ``terminating`` false. Only the first address of an endpoint
means anything, and only IPv4 and IPv6 are address types that do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from mcp_proxy.backends import Endpoint
from mcp_proxy.discovery import LookError, merged

FAMILIES: Final = ("IPv4", "IPv6")


class Member(msgspec.Struct, frozen=True):
    """An endpoint of a slice. Conditions may be nil, which is None."""

    address: str
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None
    pod: str | None = None
    """Uid of what it stands for."""

    @property
    def is_open(self) -> bool | None:
        """None: it is no backend. ``terminating`` rules over ``ready``, which a Service with
        publishNotReadyAddresses says of everybody until the end."""
        if self.terminating:
            return None if self.serving is False else False
        return None if self.ready is False else True


class Port(msgspec.Struct, frozen=True):
    """TCP only. ``number`` is that of the pod, not that of the Service."""

    number: int
    name: str = ""


class Slice(msgspec.Struct, frozen=True):
    family: str
    ports: tuple[Port, ...]
    members: tuple[Member, ...]


def endpoints_of(
    slices: Iterable[Slice], port: int | str | None, *, path: str, tls: bool
) -> tuple[Endpoint, ...]:
    """The backends. ``port``: number or name, None for the only one. Raises LookError if there are
    endpoints and none of them has that port, or which port is meant cannot be told."""
    usable = [one for one in slices if one.family in FAMILIES and one.members]
    reachable = [(one, number) for one in usable if (number := _number(one.ports, port)) is not None]
    if usable and not reachable:
        raise LookError(_no_port(usable, port))
    # A pod of a dual-stack Service is in slices of both families, and must not be two backends.
    pods = {member.pod for one, _ in reachable if one.family == FAMILIES[0] for member in one.members}
    return merged(
        Endpoint(member.address, number, path, tls, is_open=member.is_open)
        for one, number in reachable
        for member in one.members
        if member.is_open is not None
        and (one.family == FAMILIES[0] or member.pod is None or member.pod not in pods)
    )


def _number(ports: tuple[Port, ...], wanted: int | str | None) -> int | None:
    if wanted is None:
        if len(ports) > 1:
            raise LookError("its Service has several ports: say which with discover.port")
        return ports[0].number if ports else None
    if isinstance(wanted, int) and not ports:  # a headless Service need not name any
        return wanted
    return next((port.number for port in ports if wanted in (port.number, port.name)), None)


def _no_port(slices: list[Slice], wanted: int | str | None) -> str:
    known = {
        f"{port.number} ({port.name})" if port.name else str(port.number)
        for one in slices
        for port in one.ports
    }
    if not known:
        return "its endpoints name no port: say which with discover.port"
    return f"its endpoints have no port {wanted}, only {', '.join(sorted(known))}"
