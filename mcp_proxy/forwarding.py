"""What the proxy says about itself and its client to backends: Via, X-Forwarded-*, credentials.

Rules of this file: pure. Claims of a peer that is not a trusted proxy are dropped, never
passed on (Via claims nothing; every proxy extends it, RFC 9110 section 7.6.3). The client's
address is found by walking X-Forwarded-For from the right over trusted addresses: the left end
is whatever the client typed.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from mcp_proxy.headers import RequestHead
from mcp_proxy.wire import Fields, Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

WALK_LIMIT: Final = 16
"""X-Forwarded-For entries looked at, from the right."""


ADDRESS_LIMIT: Final = 45
"""Characters of the longest IPv6 address (with an IPv4 tail)."""


class Forwarder:
    """Builds the headers that this instance adds towards backends."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)
        self.pseudonym = f"mcp-proxy-{secrets.token_hex(4)}".encode()
        """Of this instance in Via (RFC 9110 section 7.6.3)."""
        self._via = b"1.1 " + self.pseudonym
        self._is_trusted = lru_cache(maxsize=4096)(self._judge)

    def is_loop(self, head: RequestHead) -> bool:
        """The request has been through this very instance."""
        return self.pseudonym in head.via

    def trusts(self, request: Request) -> bool:
        """What its peer says of itself and of others is believed."""
        return self._is_trusted(plain_address(request.peer))

    def client(self, request: Request, head: RequestHead) -> str:
        """Address of the client, as far as trusted proxies vouch for it."""
        client = plain_address(request.peer)
        if not head.forwarded_for or not self._is_trusted(client):
            return client
        for entry in reversed(head.forwarded_for.decode("latin-1").split(",")[-WALK_LIMIT:]):
            candidate = plain_address(entry.strip())
            if not _is_address(candidate):
                break
            client = candidate
            if not self._is_trusted(candidate):
                break
        return client

    def headers(self, request: Request, head: RequestHead, authorization: bytes | None) -> Fields:
        """The end-to-end headers for the backend. ``authorization``: the pool's own
        credentials, sent instead of the client's."""
        forward = head.forward
        if authorization is not None:
            forward = [pair for pair in forward if pair[0] != b"authorization"]
            forward.append((b"authorization", authorization))
        via = b"%b, %b" % (head.via, self._via) if head.via else self._via
        own = [(b"via", via), (b"x-forwarded-host", head.host or b"")]
        peer = plain_address(request.peer)
        chain, proto = peer.encode(), request.scheme.encode()
        if self._is_trusted(peer):
            chain = b"%b, %b" % (head.forwarded_for, chain) if head.forwarded_for else chain
            proto = head.forwarded_proto or proto
        own.append((b"x-forwarded-proto", proto))
        if chain:
            own.append((b"x-forwarded-for", chain))
        return Fields(forward + own)

    def _judge(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


_MAPPED: Final = "::ffff:"


def plain_address(address: str) -> str:
    """An IPv4 peer of a dual-stack socket, written as what it is."""
    return address[len(_MAPPED) :] if address.startswith(_MAPPED) and "." in address else address


def _is_address(text: str) -> bool:
    if len(text) > ADDRESS_LIMIT or "%" in text:  # a scope id can be any text
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
