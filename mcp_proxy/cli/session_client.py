"""Sessions, as commands get them from the admin listener.

Rules of this file: pages are asked for one after the other, when they are needed. No name is guessed:
a prefix is looked up on every page, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import click
import msgspec

from mcp_proxy.admin.backup import CONTENT_TYPE
from mcp_proxy.cli.admin_client import Admin, AdminError, NotThere
from mcp_proxy.headers import is_session_id
from mcp_proxy.sessions import SessionKey

_PAGE: Final = 1000

_SEARCH_PAGES: Final = 100
"""Pages that are read for the sake of a prefix: seconds. Beyond, the name has to be given whole."""

_NAME = re.compile(r"[0-9a-f]{40}")
_PREFIX = re.compile(r"[0-9a-f]{8,39}")
_SHOWN_MATCHES = 3


class Session(msgspec.Struct):
    name: str
    route: str
    pool: str
    backend: str
    principal: str
    generation: int
    created: int | None
    expires_in_s: float | None
    moved: bool


class _Page(msgspec.Struct):
    sessions: list[Session]
    cursor: str


class Restored(msgspec.Struct):
    restored: int
    skipped: int


class _Done(msgspec.Struct):
    ended: str


def pages(admin: Admin, *, pool: str | None = None, limit: int | None = None) -> Iterator[list[Session]]:
    """Every session, or those of a pool, at most ``limit``. A page may be empty."""
    params = {} if pool is None else {"pool": pool}
    left = limit
    while left is None or left > 0:
        params["limit"] = str(_PAGE if left is None else min(_PAGE, left))
        page = admin.ask(_Page, "GET", "/sessions", params=params)
        sessions = page.sessions[:left]
        yield sessions
        if left is not None:
            left -= len(sessions)
        if not page.cursor:
            return
        if page.cursor == params.get("cursor"):
            raise AdminError("the list does not go on: the registry gave the same page twice; try again.")
        params["cursor"] = page.cursor


def show(admin: Admin, name: str) -> Session:
    """Raises NotThere."""
    return admin.ask(Session, "GET", f"/sessions/{name}")


def end(admin: Admin, name: str) -> None:
    """Raises NotThere."""
    admin.ask(_Done, "DELETE", f"/sessions/{name}")


def restore(admin: Admin, backup: Iterable[bytes]) -> Restored:
    return admin.ask(Restored, "POST", "/sessions/import", content=backup, content_type=CONTENT_TYPE)


def whole_name(admin: Admin, text: str) -> str:
    """The name that ``text`` is, or is the beginning of. Raises UsageError, NotThere, AdminError."""
    if _NAME.fullmatch(text):
        return text
    if not _PREFIX.fullmatch(text):
        raise click.UsageError("the name of a session is 40 digits of 0-9 and a-f, or at least the first 8")
    matches: set[str] = set()
    for number, page in enumerate(pages(admin), 1):
        matches |= {session.name for session in page if session.name.startswith(text)}
        if len(matches) > 1:
            some = ", ".join(sorted(matches)[:_SHOWN_MATCHES])
            raise AdminError(f"{text} is the beginning of several: {some}; give more digits.")
        if number == _SEARCH_PAGES:
            raise AdminError("there are too many sessions to look for a beginning: give all 40 digits.")
    if not matches:
        raise NotThere("there is no such session, or not any more")
    return matches.pop()


def name_of_id(route: str, session_id: bytes) -> str:
    """Computed here: the id goes nowhere. Raises UsageError."""
    if not is_session_id(session_id):
        raise click.UsageError("not a session id: 1 to 512 visible ASCII characters, as in Mcp-Session-Id")
    return SessionKey(route, session_id).name
