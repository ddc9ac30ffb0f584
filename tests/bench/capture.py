"""What passes on the loopback interface, with the kernel's own time of each packet.

Rules of this file: nothing runs while a load runs: the kernel copies packets into a ring, and they are
read when all is over. A ring that was too small raises; half a measurement is none. Linux only, and only for
who may capture (root, or CAP_NET_RAW).
"""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Iterator, Sequence
from ctypes import addressof, create_string_buffer
from types import TracebackType
from typing import NamedTuple

from tests.bench.procs import BenchError

FRAMES = 128 * 1024
"""Packets with data that one measurement may have: four per small call."""
_FRAME_BYTES = 1024
"""Of the ring. About 870 remain for the data of a packet, which is where a small call says its id."""
_BLOCK_BYTES = 64 * 1024

_SO_ATTACH_FILTER = 26
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_TPACKET_V2 = 1
_ETH_P_ALL = 3
"""Others see incoming packets only."""
_ETH_P_IP = 0x0800
_TP_STATUS_USER = 1
_HEADER = struct.Struct("=IIIHHII")
"""``tpacket2_hdr``: status, len, snaplen, mac, net, sec, nsec."""

_LD_BYTE, _LD_HALF, _AND, _RSH, _ADD, _TAX, _JEQ, _JEQ_X, _RET = (
    0x30, 0x28, 0x54, 0x74, 0x04, 0x07, 0x15, 0x1D, 0x06,
)  # fmt: skip
_PACKET_TYPE = 0xFFFFF004
"""Ancillary data: a packet passes loopback twice, and the first time it is outgoing."""
_OUTGOING = 4
_ALL, _NOTHING = 0xFFFF, 0
_ETHERNET_BYTES = 14
_IP_BYTES = 20
"""On loopback nobody sets IP options."""


class Packet(NamedTuple):
    """One that carries data; ``data`` is its beginning."""

    at_s: float
    source: int
    target: int
    """TCP ports."""
    data: bytes


class Capture:
    """``with Capture(ports) as capture: ...``: afterwards ``packets()`` from or to these ports, in order."""

    def __init__(self, ports: Sequence[int]) -> None:
        """Raises OSError if this is not allowed."""
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._attach(_filter(ports))
            self._sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
            blocks = FRAMES * _FRAME_BYTES // _BLOCK_BYTES
            ring = struct.pack("=IIII", _BLOCK_BYTES, blocks, _FRAME_BYTES, FRAMES)
            self._sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, ring)
            self._ring = mmap.mmap(self._sock.fileno(), FRAMES * _FRAME_BYTES)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Capture:
        self._sock.bind(("lo", _ETH_P_ALL))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._packets = list(self._read()) if error is None else []
        _, lost = struct.unpack("=II", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._ring.close()
        self._sock.close()
        if lost and error is None:
            raise BenchError(f"{lost} packets did not fit the ring")

    def packets(self) -> list[Packet]:
        return self._packets

    def _attach(self, program: Sequence[tuple[int, int, int, int]]) -> None:
        code = create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
        filter_ = struct.pack("@HP", len(program), addressof(code))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)

    def _read(self) -> Iterator[Packet]:
        for start in range(0, FRAMES * _FRAME_BYTES, _FRAME_BYTES):
            status, _, kept, mac, net, seconds, nanoseconds = _HEADER.unpack_from(self._ring, start)
            if not status & _TP_STATUS_USER:
                return
            tcp = self._ring[start + net + _IP_BYTES : start + mac + kept]
            source, target = struct.unpack_from("!HH", tcp)
            data = tcp[(tcp[12] >> 4) * 4 :]
            yield Packet(seconds + nanoseconds / 1e9, source, target, data)


def _filter(ports: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """TCP over IPv4, outgoing, with data, from or to one of ``ports``. What is not wanted must not come
    into the ring: acknowledgements would be half of it."""
    program = [
        (_LD_BYTE, 0, 0, _PACKET_TYPE),
        (_JEQ, 1, 0, _OUTGOING),
        (_RET, 0, 0, _NOTHING),
        (_LD_HALF, 0, 0, _ETHERNET_BYTES - 2),
        (_JEQ, 1, 0, _ETH_P_IP),
        (_RET, 0, 0, _NOTHING),
        (_LD_BYTE, 0, 0, _ETHERNET_BYTES + 9),
        (_JEQ, 1, 0, socket.IPPROTO_TCP),
        (_RET, 0, 0, _NOTHING),
        # As long as both headers together?
        (_LD_BYTE, 0, 0, _ETHERNET_BYTES + _IP_BYTES + 12),
        (_RSH, 0, 0, 2),
        (_AND, 0, 0, 0x3C),
        (_ADD, 0, 0, _IP_BYTES),
        (_TAX, 0, 0, 0),
        (_LD_HALF, 0, 0, _ETHERNET_BYTES + 2),
        (_JEQ_X, 0, 1, 0),
        (_RET, 0, 0, _NOTHING),
    ]
    for offset in (0, 2):
        program.append((_LD_HALF, 0, 0, _ETHERNET_BYTES + _IP_BYTES + offset))
        for port in ports:
            program += [(_JEQ, 0, 1, port), (_RET, 0, 0, _ALL)]
    return [*program, (_RET, 0, 0, _NOTHING)]
