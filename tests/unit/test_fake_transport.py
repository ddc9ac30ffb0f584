"""One contract, run against the fake transport and against uvloop's own."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from tests.tools import PATIENCE_S
from tests.unit.fakes import FakeTransport

MUCH = 8 * 1024 * 1024
"""More than a kernel takes from somebody whose peer does not read."""


class Recorder(asyncio.Protocol):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.changed = asyncio.Event()

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()

    def data_received(self, data: bytes) -> None:
        self._note(f"data {data.decode()}")

    def eof_received(self) -> None:
        self._note("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self._note("lost" if exc is None else "reset")

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    async def until(self, event: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while event not in self.events:
                self.changed.clear()
                await self.changed.wait()


class Rig(Protocol):
    transport: asyncio.Transport
    protocol: Recorder

    def stall(self) -> None: ...
    def send(self, data: bytes) -> None: ...
    def read_all(self) -> None: ...
    def finish(self) -> None: ...
    def reset(self) -> None: ...


class FakeRig:
    def __init__(self) -> None:
        self.protocol = Recorder()
        self.fake = FakeTransport()
        self.transport: asyncio.Transport = self.fake
        self.fake.attach(self.protocol)

    def stall(self) -> None:
        self.fake.is_stalled = True

    def send(self, data: bytes) -> None:
        self.fake.feed(data)

    def read_all(self) -> None:
        self.fake.peer_reads()

    def finish(self) -> None:
        self.fake.peer_finishes()

    def reset(self) -> None:
        self.fake.peer_resets()


class RealRig:
    def __init__(self, transport: asyncio.Transport, protocol: Recorder, peer: socket.socket) -> None:
        self.transport = transport
        self.protocol = protocol
        self.peer = peer
        self._reader: asyncio.Task[None] | None = None

    def stall(self) -> None:
        """A peer that does not read needs to do nothing."""

    def send(self, data: bytes) -> None:
        self.peer.sendall(data)

    def read_all(self) -> None:
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while await asyncio.get_running_loop().sock_recv(self.peer, 1 << 20):
            pass

    def finish(self) -> None:
        self.peer.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()

    async def aclose(self) -> None:
        self.transport.abort()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self.peer.close()


@pytest.fixture(params=["fake", "uvloop"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    if request.param == "fake":
        yield FakeRig()
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    peer.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_accepted_socket(Recorder, accepted)
    real = RealRig(transport, protocol, peer)
    yield real
    await real.aclose()


async def test_a_close_is_told_in_a_later_turn_and_only_once(rig: Rig) -> None:
    rig.transport.close()
    rig.transport.close()
    rig.transport.abort()
    assert rig.protocol.events == []
    assert rig.transport.is_closing()
    await rig.protocol.until("lost")
    assert rig.protocol.events == ["lost"]


async def test_a_close_waits_for_a_peer_that_does_not_read(rig: Rig) -> None:
    rig.stall()
    rig.transport.write(b"x" * MUCH)
    rig.transport.close()
    await asyncio.sleep(0)
    assert rig.protocol.events == ["pause"]
    rig.read_all()
    await rig.protocol.until("lost")
    assert rig.protocol.events in (["pause", "resume", "lost"], ["pause", "lost"])


async def test_an_abort_does_not_wait(rig: Rig) -> None:
    rig.stall()
    rig.transport.write(b"x" * MUCH)
    rig.transport.abort()
    await rig.protocol.until("lost")
    assert rig.protocol.events == ["pause", "lost"]


async def test_the_pause_is_told_once_and_then_the_resume(rig: Rig) -> None:
    rig.stall()
    rig.transport.write(b"x" * MUCH)
    rig.transport.write(b"x")
    assert rig.protocol.events == ["pause"]
    rig.read_all()
    await rig.protocol.until("resume")
    assert rig.transport.get_write_buffer_size() == 0


async def test_a_fin_of_the_peer_closes(rig: Rig) -> None:
    rig.finish()
    await rig.protocol.until("lost")
    assert rig.protocol.events == ["eof", "lost"]


async def test_a_reset_of_the_peer_is_an_error(rig: Rig) -> None:
    rig.reset()
    await rig.protocol.until("reset")
    assert rig.protocol.events == ["reset"]


async def test_a_write_behind_write_eof_is_an_error(rig: Rig) -> None:
    rig.transport.write_eof()
    rig.transport.write_eof()
    with pytest.raises(RuntimeError):
        rig.transport.write(b"x")


async def test_a_write_on_a_closing_transport_is_ignored_and_later_an_error(rig: Rig) -> None:
    rig.transport.abort()
    rig.transport.write(b"x")
    await rig.protocol.until("lost")
    with pytest.raises(RuntimeError):
        rig.transport.write(b"x")


async def test_a_lost_transport_may_be_paused_resumed_and_closed(rig: Rig) -> None:
    rig.transport.close()
    await rig.protocol.until("lost")
    rig.transport.pause_reading()
    rig.transport.resume_reading()
    rig.transport.close()
    rig.transport.abort()
    assert rig.protocol.events == ["lost"]
