"""A session server as a process of its own, so that it can be killed, frozen and started again.

Rules of this file: what arrives is written to the journal, a file that outlives the process, before it is
answered. With ``--remembers`` a process that starts again knows the sessions of the one before, as servers do
that keep them in a database.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tools.backend import Backend
from tests.tools.http1 import LAST_CHUNK
from tests.tools.mcp_backend import JSON, McpServer, result
from tests.tools.recording import Conn, Seen


class Journal:
    """Lines of JSON at the end of a file, each written at once."""

    def __init__(self, file: str) -> None:
        self._fd = os.open(file, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def write(self, **entry: Any) -> None:
        os.write(self._fd, json.dumps(entry).encode() + b"\n")


class Violations(list[str]):
    """A strict reader's complaints go to the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def append(self, breach: str) -> None:
        self._journal.write(violation=breach)


class Inheriting(Backend):
    """Listens on a socket that somebody else has opened."""

    def __init__(self, handler: McpServer, listener: socket.socket) -> None:
        super().__init__(handler)
        self._inherited = listener

    def listen(self) -> None:
        self._inherited.setblocking(False)
        self._listener = self._inherited
        self._accepting = asyncio.create_task(self._accept(self._inherited))


class JournalServer(McpServer):
    """Its tools: ``echo`` tells server and session, ``count`` answers with an event stream, ``hang`` never,
    ``wait`` as ``echo`` when somebody calls ``release``, ``leave`` as ``echo`` and hangs up right behind it.
    Its GET streams go on where ``Last-Event-ID`` says."""

    def __init__(self, name: str, journal: Journal) -> None:
        super().__init__(name, tool=self._call)
        self._journal = journal
        self._released = asyncio.Event()
        self.streams = self._listen  # type: ignore[assignment]

    async def __call__(self, request: Seen, conn: Conn) -> None:
        body = await request.whole()
        message = json.loads(body) if body else {}
        self._journal.write(
            http=request.method.decode(),
            method=message.get("method"),
            id=message.get("id"),
            session=_session(request),
        )
        known = set(self.sessions)
        await super().__call__(request, conn)
        for session in self.sessions - known:
            self._journal.write(made=session)

    async def _listen(self, request: Seen, conn: Conn) -> None:
        number = int(request.head.one("last-event-id") or 0) + 1
        await conn.stream_head()
        await conn.send_chunk(b'id: %d\ndata: {"server":"%s"}\n\n' % (number, self.name.encode()))
        await conn.until(lambda: bool(conn.closed_by))

    async def _call(self, request: Seen, conn: Conn) -> None:
        message = json.loads(await request.whole())
        name = message.get("params", {}).get("name")
        if name == "wait":
            await self._released.wait()
        elif name == "release":
            self._released.set()
        told = result(message, server=self.name, session=_session(request))
        if name == "hang":
            await conn.gone()
        elif name == "count":
            await conn.stream_head()
            for number in range(3):
                await conn.send_chunk(b'data: {"step":%d}\n\n' % number)
            await conn.send_chunk(b"data: " + told + b"\n\n")
            await conn.send(LAST_CHUNK)
        elif "id" in message:
            await conn.answer(200, [JSON], told)
            if name == "leave":
                conn.close()
        else:
            await conn.answer(202, [])


def _session(request: Seen) -> str:
    return (request.head.one("mcp-session-id") or b"").decode()


def remembered(lines: Sequence[str]) -> set[str]:
    """Sessions that a journal tells of, and that nobody has ended."""
    sessions: set[str] = set()
    for entry in map(json.loads, lines):
        if "made" in entry:
            sessions.add(entry["made"])
        elif entry.get("http") == "DELETE":
            sessions.discard(entry["session"])
    return sessions


async def serve(options: argparse.Namespace, sessions: set[str]) -> None:
    journal = Journal(options.journal)
    server = JournalServer(options.name, journal)
    server.sessions = sessions
    backend = Inheriting(server, socket.socket(fileno=options.fd))
    backend.violations = Violations(journal)
    async with backend:
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--fd", required=True, type=int)
    parser.add_argument("--journal", required=True)
    parser.add_argument("--remembers", action="store_true")
    options = parser.parse_args()
    file = Path(options.journal)
    knows = options.remembers and file.exists()
    asyncio.run(serve(options, remembered(file.read_text().splitlines()) if knows else set()))


if __name__ == "__main__":
    main()
