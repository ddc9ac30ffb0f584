"""A name server on UDP at 127.0.0.1, whose zone a test writes.

Rules of this file: dnspython reads and writes the packets, all answers are what the test has put there;
every question is recorded. No time passes: what it does not answer it drops.
"""

from __future__ import annotations

import asyncio
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.tools import PATIENCE_S


class DnsServer(asyncio.DatagramProtocol):
    """``async with DnsServer() as server``: it listens at ``server.port``."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.questions: list[tuple[str, str]] = []
        """Name and type, in the order in which they came."""
        self.port = port
        self._address = address
        self._zone: dict[tuple[dns.name.Name, str], dns.rrset.RRset] = {}
        self._extra: list[dns.rrset.RRset] = []
        self._refusal: dns.rcode.Rcode | None = None
        self._refused: set[dns.name.Name] = set()
        self._is_silent = False
        self._asked = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None

    # --- what it knows ---------------------------------------------------------------

    def put(self, name: str, kind: str, *records: str, ttl: int = 60) -> None:
        """Replaces the records of a name; none at all: the name does not exist, or not with this type."""
        key = dns.name.from_text(name), kind
        if records:
            self._zone[key] = dns.rrset.from_text(key[0], ttl, "IN", kind, *records)
        else:
            self._zone.pop(key, None)

    def come_along(self, name: str, kind: str, *records: str, ttl: int = 60) -> None:
        """Goes into the additional section of every answer."""
        self._extra.append(dns.rrset.from_text(dns.name.from_text(name), ttl, "IN", kind, *records))

    def fail(self, code: str | None) -> None:
        """Answer everything with ``SERVFAIL`` or another code; None: as the zone says."""
        self._refusal = None if code is None else dns.rcode.from_text(code)

    def refuse(self, name: str) -> None:
        """Fail to find out about this one."""
        self._refused.add(dns.name.from_text(name))

    def fall_silent(self) -> None:
        self._is_silent = True

    async def asked(self, count: int) -> None:
        """Wait for so many questions in all."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.questions) < count:
                self._asked.clear()
                await self._asked.wait()

    # --- the wire --------------------------------------------------------------------

    async def __aenter__(self) -> DnsServer:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=(self._address, self.port)
        )
        self._transport = transport
        self.port = int(transport.get_extra_info("sockname")[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._transport is not None
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        self.questions.append((question.name.to_text(), dns.rdatatype.to_text(question.rdtype)))
        self._asked.set()
        if self._is_silent:
            return
        assert self._transport is not None
        self._transport.sendto(self._answer(query, question).to_wire(), addr)

    def _answer(self, query: dns.message.Message, question: dns.rrset.RRset) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        found = self._zone.get((question.name, dns.rdatatype.to_text(question.rdtype)))
        if self._refusal is not None:
            response.set_rcode(self._refusal)
        elif question.name in self._refused:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif found is not None:
            response.answer.append(found)
            response.additional.extend(self._extra)
        elif not any(name == question.name for name, _ in self._zone):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response
