"""``/sessions``: operators list, show and end sessions, and make and restore backups.

Rules of this file: whatever the number of sessions, one page of them is held at a time. Lists and
details tell nothing that could be used as the session; a backup does (``backup.py``). Cannot tell is
503, never 404. A backup that breaks off has no last line and is not ended cleanly.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from mcp_proxy.admin import AdminView
from mcp_proxy.admin.answers import SECURITY_HEADERS, Endpoint, document, refusal
from mcp_proxy.admin.backup import (
    CONTENT_TYPE,
    InvalidBackup,
    Reader,
    header,
    is_worth_a_line,
    lines,
    trailer,
)
from mcp_proxy.admin.documents import Ended, Restored, Session, Sessions
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions import Listed, Page

logger = logging.getLogger("mcp_proxy")

PAGE: Final = 100
PAGE_LIMIT: Final = 1000
"""A page of it takes milliseconds and 300 KB."""

BATCH: Final = 500
"""Sessions of one step of an export or import: between two steps traffic has its turn."""

_CHUNK: Final = 64 * 1024
"""Bytes of an import that are parsed in one step, whatever the server's own pieces."""

CURSOR_LIMIT: Final = 512
"""Characters. Registries need a few dozen."""

_NAME = re.compile(r"[0-9a-f]{40}")
_LIMIT = re.compile(r"[0-9]{1,4}")
_PARAMETERS = frozenset({"cursor", "limit", "pool"})


def session_endpoints(view: AdminView) -> dict[str, Endpoint]:
    """By path."""
    endpoints = _Sessions(view)
    return {
        "/sessions": endpoints.index,
        "/sessions/export": endpoints.export,
        "/sessions/import": endpoints.restore,
        "/sessions/{name}": endpoints.one,
    }


def describe(session: Listed, pool: str) -> Session:
    record = session.record
    return Session(
        name=session.name,
        route=session.route,
        pool=pool,
        backend=record.backend,
        principal=record.principal,
        generation=record.generation,
        created=record.created_s or None,
        expires_in_s=None if session.expires_s is None else round(max(0.0, session.expires_s), 1),
        moved=record.generation > 0,
    )


class _Query(NamedTuple):
    cursor: str
    limit: int
    pool: str | None


class _Sessions:
    def __init__(self, view: AdminView) -> None:
        self._view = view

    async def index(self, request: Request) -> Response:
        query = _query(request)
        if isinstance(query, Response):
            return query
        try:
            page = await self._view.sessions_page(query.cursor, query.limit)
        except ValueError:
            return refusal(400, "bad_cursor", "cursor must be what the page before said, or absent")
        except StoreError as error:
            return _unavailable(error)
        pools = [(session, self._view.pool_of(session)) for session in page.sessions]
        found = [describe(session, pool) for session, pool in pools if query.pool in (None, pool)]
        return document(200, Sessions(found, page.cursor))

    async def one(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        if _NAME.fullmatch(name) is None:
            return refusal(404, "not_found", "the name of a session is 40 digits of 0-9 and a-f")
        try:
            if request.method == "DELETE":
                is_ended = await self._view.end_session(name)
                return document(200, Ended(name)) if is_ended else _not_found()
            session = await self._view.session(name)
        except StoreError as error:
            return _unavailable(error)
        if session is None:
            return _not_found()
        return document(200, describe(session, self._view.pool_of(session)))

    async def export(self, request: Request) -> Response:
        try:
            first = await self._view.sessions_page("", BATCH)
        except StoreError as error:
            return _unavailable(error)
        return _Export(self._parts(first), headers=SECURITY_HEADERS, media_type=CONTENT_TYPE)

    async def _parts(self, page: Page) -> AsyncIterator[bytes]:
        yield header(int(time.time()))
        count = 0
        while True:
            sessions = [session for session in page.sessions if is_worth_a_line(session)]
            count += len(sessions)
            yield lines(sessions)
            if not page.cursor:
                break
            await asyncio.sleep(0)  # a registry in memory and a fast reader never wait
            page = await self._view.sessions_page(page.cursor, BATCH)
        yield trailer(count)

    async def restore(self, request: Request) -> Response:
        # No page can send this type to another origin without asking first, and that is refused.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != CONTENT_TYPE:
            return refusal(415, "unsupported_media_type", f"send a backup as {CONTENT_TYPE}")
        restoration = _Restoration(self._view)
        try:
            async for chunk in request.stream():
                await restoration.feed(chunk)
            await restoration.finish()
        except InvalidBackup as error:
            return refusal(400, "invalid_backup", f"{error}. {restoration.so_far}")
        except StoreError as error:
            return _unavailable(error, restoration.so_far)
        except ClientDisconnect:
            return refusal(400, "invalid_backup", "the client has left")  # and nobody reads this
        return document(200, restoration.result)


class _Restoration:
    """One import, batch by batch."""

    def __init__(self, view: AdminView) -> None:
        self._view = view
        self._reader = Reader()
        self._restored = 0
        self._skipped = 0

    async def feed(self, chunk: bytes) -> None:
        for start in range(0, len(chunk), _CHUNK):
            await self._apply(self._reader.feed(chunk[start : start + _CHUNK]))

    async def finish(self) -> None:
        await self._apply(list(self._reader.finish()))

    async def _apply(self, sessions: list[Listed]) -> None:
        for start in range(0, len(sessions), BATCH):
            batch = sessions[start : start + BATCH]
            restored = await self._view.restore_sessions(batch)
            self._restored += restored
            self._skipped += len(batch) - restored
            await asyncio.sleep(0)  # traffic has its turn

    @property
    def result(self) -> Restored:
        return Restored(self._restored, self._skipped)

    @property
    def so_far(self) -> str:
        return f"{self._restored} sessions were restored before that and stay; to import again is safe"


class _Export(StreamingResponse):
    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except StoreError as error:
            # Without the last message the server cuts the connection, so the client sees it, too.
            logger.error("an export of sessions broke off: %s", error)


def _query(request: Request) -> _Query | Response:
    given = request.query_params
    unknown = given.keys() - _PARAMETERS
    if unknown or len(given.multi_items()) != len(given):
        return refusal(400, "bad_query", "known are cursor, limit and pool, each once")
    limit = given.get("limit", str(PAGE))
    if _LIMIT.fullmatch(limit) is None or not 1 <= int(limit) <= PAGE_LIMIT:
        return refusal(400, "bad_query", f"limit must be a number from 1 to {PAGE_LIMIT}")
    cursor = given.get("cursor", "")
    if len(cursor) > CURSOR_LIMIT:
        return refusal(400, "bad_cursor", "cursor must be what the page before said, or absent")
    return _Query(cursor, int(limit), given.get("pool"))


def _not_found() -> Response:
    return refusal(404, "session_not_found", "there is no such session, or not any more")


def _unavailable(error: StoreError, more: str = "try again") -> Response:
    return refusal(503, "store_unavailable", f"the session registry: {error}. {more}", {"retry-after": "1"})
