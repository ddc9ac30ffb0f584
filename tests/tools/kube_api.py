"""As much of a Kubernetes API server as a watch of EndpointSlices needs, over real HTTP.

Rules of this file: JSON as the real one writes it (zero values included, pages, chunked watches); it has a
resourceVersion for every change and sends a watch what came after its own. What goes wrong is told to it by
the test. Every request is recorded.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.tools import PATIENCE_S

Json = dict[str, Any]


def member(address: str, uid: str | None = None, **conditions: bool | None) -> Json:
    """An endpoint of a slice; conditions that are not named are nil."""
    target = None if uid is None else {"kind": "Pod", "name": uid, "uid": uid}
    return {"addresses": [address], "conditions": conditions, "targetRef": target}


def slice_of(
    name: str, *members: Json, ports: Iterable[tuple[str, int]] = (("http", 8000),), family: str = "IPv4"
) -> Json:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "weather"}},
        "addressType": family,
        "endpoints": list(members) or None,
        "ports": [{"name": port, "port": number, "protocol": "TCP"} for port, number in ports],
    }


class Request:
    """What the server has received."""

    def __init__(self, target: str, headers: dict[str, str]) -> None:
        parts = urlsplit(target)
        self.path = parts.path
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.headers = headers
        self.is_watch = "watch" in self.query


class KubeApi:
    """``async with KubeApi() as api``: listens at ``api.port``. ``page``: items per answer to a list."""

    def __init__(self, tls: ssl.SSLContext | None = None, page: int | None = None) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.port = 0
        self._tls = tls
        self._page = page
        self._version = 10
        self._slices: dict[str, Json] = {}
        self._events: list[tuple[int, Json]] = []
        self._watches: dict[asyncio.StreamWriter, int] = {}
        """The version up to which each of them knows."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._refusals: dict[bool, int] = {}
        self._stops_after_page = False
        self._ends_watches = False
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    # --- what is in it ---------------------------------------------------------------

    async def put(self, item: Json) -> None:
        name = item["metadata"]["name"]
        kind = "MODIFIED" if name in self._slices else "ADDED"
        self._slices[name] = item
        await self._happen(kind, item)

    async def delete(self, name: str) -> None:
        await self._happen("DELETED", self._slices.pop(name))

    async def bookmark(self) -> None:
        """Tells watches the present version, and nothing else."""
        await self._happen("BOOKMARK", {"metadata": {"name": ""}, "addressType": "", "endpoints": None})

    async def _happen(self, kind: str, item: Json) -> None:
        self._version += 1
        item = {
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            **item,
            "metadata": {
                "creationTimestamp": None,
                **item["metadata"],
                "resourceVersion": str(self._version),
            },
        }
        if kind in ("ADDED", "MODIFIED"):
            self._slices[item["metadata"]["name"]] = item
        self._events.append((self._version, {"type": kind, "object": item}))
        for writer in list(self._watches):
            self._send_news(writer)

    # --- what goes wrong -------------------------------------------------------------

    def refuse(self, status: int | None, *, watch: bool = False) -> None:
        """Answer every list, or every watch, with ``status``; None: no longer."""
        if status is None:
            self._refusals.pop(watch, None)
        else:
            self._refusals[watch] = status

    def stop_after_page(self, does: bool) -> None:
        """Close the connection instead of sending a second page."""
        self._stops_after_page = does

    def end_watches(self, does: bool) -> None:
        """End every watch as soon as it has begun, cleanly."""
        self._ends_watches = does

    def expire(self) -> None:
        """410 Gone inside of every open watch; whoever asks for an older version gets it, too."""
        status = {
            "kind": "Status",
            "status": "Failure",
            "reason": "Expired",
            "code": 410,
            "message": "too old",
        }
        for writer in list(self._watches):
            self._send_event(writer, {"type": "ERROR", "object": status})
            self._finish(writer)
        self._events.clear()

    def cut(self) -> None:
        """Reset the connection of every open watch, in the middle of an event."""
        for writer in list(self._watches):
            writer.write(b'20\r\n{"type":"ADD')
            writer.transport.abort()
            self._watches.pop(writer, None)

    # --- what it has seen ------------------------------------------------------------

    @property
    def lists(self) -> list[Request]:
        return [request for request in self.requests if not request.is_watch]

    @property
    def watches(self) -> list[Request]:
        return [request for request in self.requests if request.is_watch]

    @property
    def open_watches(self) -> int:
        return len(self._watches)

    async def until(self, *, lists: int = 0, watches: int = 0, connections: int | None = None) -> None:
        """Wait for so many requests in all, and for exactly so many open connections."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(
                lambda: (
                    len(self.lists) >= lists
                    and len(self.watches) >= watches
                    and connections in (None, self.connections)
                )
            )

    # --- where it is -----------------------------------------------------------------

    def write_kubeconfig(self, path: Path, namespace: str = "mcp") -> None:
        config = {
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "test", "user": {"token": "kubeconfig-token"}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
            ],
        }
        path.write_text(json.dumps(config))

    async def __aenter__(self) -> KubeApi:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Also all connections. ``async with`` starts it again, at the same port."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self.until(connections=0)
        await self._server.wait_closed()

    # --- HTTP ------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            self._writers.discard(writer)
            self._watches.pop(writer, None)
            writer.close()
            await self._tell()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest if line)}
        request = Request(first.split()[1], headers)
        self.requests.append(request)
        status = self._refusals.get(request.is_watch)
        if status is not None:
            self._send(
                writer, status, {"kind": "Status", "code": status, "message": "no", "status": "Failure"}
            )
        elif request.is_watch:
            self._begin_watch(writer, int(request.query["resourceVersion"]))
        elif "continue" in request.query and self._stops_after_page:
            writer.transport.abort()
        else:
            self._send(writer, 200, self._listing(int(request.query.get("continue", "0"))))
        await self._tell()
        return True

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _listing(self, start: int) -> Json:
        items = list(self._slices.values())
        end = len(items) if self._page is None else start + self._page
        more = {"continue": str(end)} if end < len(items) else {}
        return {"metadata": {"resourceVersion": str(self._version), **more}, "items": items[start:end]}

    def _send(self, writer: asyncio.StreamWriter, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        phrase = HTTPStatus(status).phrase
        writer.write(
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def _begin_watch(self, writer: asyncio.StreamWriter, version: int) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._watches[writer] = version
        self._send_news(writer)
        if self._ends_watches:
            self._finish(writer)

    def _send_news(self, writer: asyncio.StreamWriter) -> None:
        for version, event in self._events:
            if version > self._watches[writer]:
                self._send_event(writer, event)
        self._watches[writer] = self._version

    def _send_event(self, writer: asyncio.StreamWriter, event: Json) -> None:
        data = json.dumps(event).encode() + b"\n"
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _finish(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"0\r\n\r\n")
        self._watches.pop(writer, None)
