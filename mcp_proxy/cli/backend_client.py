"""What ``/backends`` of the admin listener is asked, and which backend a word on a command line means."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlsplit

import msgspec

from mcp_proxy.cli.admin_client import Admin, AdminError, NotThere
from mcp_proxy.cli.text import plain

_SHOWN: Final = 5
"""Backends that a message names."""


class Ambiguous(AdminError):
    """A word that does not say which backend is meant; nothing was done."""


class Drain(msgspec.Struct):
    by: str
    left_s: float
    sessions: int


class Backend(msgspec.Struct):
    id: str
    up: bool
    sessions: int
    inflight: int
    streams: int
    pool: str
    weight: int
    state: str
    era: str
    drain: Drain | None
    ejections: int


class Backends(msgspec.Struct):
    backends: list[Backend]


def known(admin: Admin, pool: str | None = None) -> list[Backend]:
    """Every backend, or those of a pool. Raises NotThere if there is no such pool."""
    backends = admin.ask(Backends, "GET", "/backends").backends
    if pool is None:
        return backends
    pools = dict.fromkeys(backend.pool for backend in backends)
    if pool not in pools:
        names = ", ".join(map(plain, pools)) or "none"
        raise NotThere(f"{admin.base} has no pool {pool!r} with backends; with backends: {names}.")
    return [backend for backend in backends if backend.pool == pool]


def find(admin: Admin, text: str, pool: str | None) -> str:
    """The id of the backend that ``text`` means: its id, its ``host:port``, or a part of no other.
    Raises NotThere, Ambiguous."""
    ids = list(dict.fromkeys(backend.id for backend in known(admin, pool)))
    for matches in (
        [id for id in ids if id == text],
        [id for id in ids if urlsplit(id).netloc == text],
        [id for id in ids if text in id],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise Ambiguous(f"{text!r} means several backends: {_some(matches)}; write more of it.")
    where = admin.base if pool is None else f"pool {pool} of {admin.base}"
    raise NotThere(f"no backend of {where} is {text!r}; there are: {_some(ids)}.")


def show(admin: Admin, id: str, pool: str | None) -> list[Backend]:
    """One backend in each of its pools. Raises NotThere."""
    return admin.ask(Backends, "GET", _path(id), params=_in(pool)).backends


def drain(admin: Admin, id: str, pool: str | None, for_: str | None) -> list[Backend]:
    """Raises NotThere."""
    params = _in(pool) | ({} if for_ is None else {"for": for_})
    return admin.ask(Backends, "POST", _path(id) + "/drain", params=params).backends


def undrain(admin: Admin, id: str, pool: str | None) -> list[Backend]:
    """Raises NotThere."""
    return admin.ask(Backends, "DELETE", _path(id) + "/drain", params=_in(pool)).backends


def _path(id: str) -> str:
    return "/backends/" + quote(id, safe="")


def _in(pool: str | None) -> dict[str, str]:
    return {} if pool is None else {"pool": pool}


def _some(ids: list[str]) -> str:
    more = len(ids) - _SHOWN
    text = ", ".join(map(plain, ids[:_SHOWN])) or "none"
    return text if more <= 0 else f"{text} and {more} more"
