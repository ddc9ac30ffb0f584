"""The seam to the session registry: who owns a session.

Unknown and unreachable are different answers: a lookup returns None only if the registry
*knows* that there is no such session, and raises StoreError if it could not be asked.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple, Protocol

import msgspec


class SessionKey(NamedTuple):
    """Sessions of two pools may collide in their ids, so the pool is part of the key."""

    pool: str
    session_id: bytes
    """Visible ASCII 0x21-0x7E, at most 512 bytes; checked by ``headers.is_session_id``."""


class SessionRecord(msgspec.Struct, frozen=True, gc=False):
    backend: str
    """Backend id, stable over restarts of the proxy."""
    principal: str = ""
    """Hash of who created the session; empty while routes do not authenticate."""


class SessionStore(Protocol):
    """Methods that may need I/O return either the value or an awaitable of it, so that a
    warm lookup costs no task. Awaitables raise StoreError when the registry fails."""

    name: str
    """Label of the store in metrics: ``memory``, ``redis``, ``signed``."""

    def get(self, key: SessionKey) -> SessionRecord | Awaitable[SessionRecord | None] | None:
        """The owner, or None if there certainly is none. Counts as use (slides the TTL)."""

    def create(self, key: SessionKey, record: SessionRecord) -> bool | Awaitable[bool]:
        """Store a new session; False if the key exists already (never overwritten)."""

    def delete(self, key: SessionKey) -> Awaitable[None] | None:
        """Forget the session. Idempotent."""

    def hold(self, key: SessionKey) -> None:
        """A stream is open on the session: it must not expire until ``release``."""

    def release(self, key: SessionKey) -> None: ...

    def count(self, pool: str) -> int:
        """Sessions known to this process."""

    async def aclose(self) -> None: ...
