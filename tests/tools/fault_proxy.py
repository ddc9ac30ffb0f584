"""A TCP relay that does, on demand, what networks do to connections.

Rules of this file: it knows no HTTP. Each direction has its own ``Faults``, which may be changed
while connections are open and act on the next bytes. Only ``latency_s`` and ``bytes_per_s`` take
time, because that is what they are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType

from tests.tools import PATIENCE_S
from tests.tools.wire import Wire


@dataclass
class Faults:
    """What happens to the bytes of one direction. The default is a faithful relay."""

    latency_s: float = 0.0
    """Before each piece is passed on."""
    slice_bytes: int = 65536
    """The receiver gets at most so many bytes in one read."""
    bytes_per_s: float = 0.0
    """0: no cap."""
    reset_after: int | None = None
    """Both ends are reset when so many bytes of a connection have been passed on."""
    close_after: int | None = None
    """The same with FIN towards the receiver, the sender's side stays open."""
    corrupt_at: int | None = None
    """Offset of the byte of a connection whose lowest bit is flipped."""
    swallow: bool = False
    """Half-open: bytes are taken and thrown away."""
    black_hole: bool = False
    """Bytes are not even taken, so the sender's buffers fill up."""


class FaultProxy:
    """``async with FaultProxy(target_port) as proxy``: connect to ``proxy.port`` instead.

    ``up`` is towards the target, ``down`` back to who connected.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.up = Faults()
        self.down = Faults()
        self.wires: list[tuple[Wire, Wire]] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self) -> None:
        """To be called after ``black_hole`` was switched off."""
        self._changed.set()
        self._changed = asyncio.Event()

    def cut(self) -> None:
        """Reset every connection, both ends."""
        for near, far in self.wires:
            near.reset()
            far.reset()

    async def __aenter__(self) -> FaultProxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        for near, far in self.wires:
            near.close()
            far.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            self._spawn(self._relay(Wire(sock)))

    async def _relay(self, near: Wire) -> None:
        target = socket.socket()
        target.setblocking(False)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_connect(target, ("127.0.0.1", self.target_port))
        except OSError:
            near.reset()
            target.close()
            return
        far = Wire(target)
        self.wires.append((near, far))
        await asyncio.gather(self._pump(near, far, self.up), self._pump(far, near, self.down))
        near.close()
        far.close()

    async def _pump(self, source: Wire, sink: Wire, faults: Faults) -> None:
        passed = 0
        try:
            while True:
                await self._admit(faults)
                data = await source.receive()
                await self._admit(faults)
                if not data:
                    sink.finish()
                    return
                if not faults.swallow:
                    passed = await self._pass_on(data, passed, source, sink, faults)
        except ConnectionAbortedError:
            pass  # this end was closed by `cut`, by the other pump or by a fault
        except ConnectionError:
            source.reset()
            sink.reset()

    async def _admit(self, faults: Faults) -> None:
        while faults.black_hole:
            await self._changed.wait()

    async def _pass_on(self, data: bytes, passed: int, source: Wire, sink: Wire, faults: Faults) -> int:
        """Returns the number of bytes passed on so far."""
        if faults.corrupt_at is not None and 0 <= (at := faults.corrupt_at - passed) < len(data):
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        limit = faults.reset_after if faults.reset_after is not None else faults.close_after
        if limit is not None:
            data = data[: limit - passed]
        for start in range(0, len(data), faults.slice_bytes):
            piece = data[start : start + faults.slice_bytes]
            if faults.latency_s or faults.bytes_per_s:
                cap = len(piece) / faults.bytes_per_s if faults.bytes_per_s else 0.0
                await asyncio.sleep(faults.latency_s + cap)
            await sink.send(piece)
            if len(piece) < len(data) or limit is not None:
                await sink.consumed()
        passed += len(data)
        if passed == faults.reset_after:
            source.reset()
            sink.reset()
        elif passed == faults.close_after:
            sink.finish()
        return passed
