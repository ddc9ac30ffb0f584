"""The seam to the session registry: who owns a session.

Two layers. A SessionStore is what the gateway asks: it answers at once whenever it can. A
Registry is what replicas share; a store may keep one behind its own memory.

Unknown and unreachable are different answers: a lookup returns None only if it is *known* that
there is no such session, and raises StoreError if nobody could be asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec

NAME_BYTES: Final = 20
"""Of a hashed key; 160 bits leave collisions to nobody."""

TOUCHES: Final = 4
"""A session in use is touched so often within its time to live; three may be late or lost."""

INITIALIZE_LIMIT: Final = 16 * 1024
"""Body of an ``initialize`` that is kept to be sent again; SDK clients send 200 bytes."""


GONE: Final = "gone:"
"""Begins the backend of a record whose backend is not known by name, followed by a hash. Ids of backends are
URLs, so none is named like that."""


class SessionKey(NamedTuple):
    """How a client names its session. Two routes may know the same id and mean two sessions."""

    route: str
    """Path of the route under which the session was created."""
    session_id: bytes
    """Visible ASCII 0x21-0x7E, at most 512 bytes; checked by ``headers.is_session_id``."""

    @property
    def name(self) -> str:
        """40 hex digits: the key under which registries and backups know the session. Whoever reads
        those learns no session id from it."""
        # No route holds a NUL, so no two keys have the same text.
        text = self.route.encode() + b"\0" + self.session_id
        return hashlib.blake2b(text, digest_size=NAME_BYTES).hexdigest()


class SessionRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What is known of a session. Only ``backend``, ``upstream_id`` and ``generation`` ever change,
    together, when the session is made anew at another backend."""

    backend: str
    """Backend id, stable over restarts of the proxy."""
    principal: str = ""
    """Hash of who created the session; empty on routes that do not authenticate."""
    upstream_id: bytes = b""
    """How the backend calls the session; empty: as the client does."""
    generation: int = 0
    """Number of moves. Of two records the one with the higher generation is right."""
    initialize: bytes = b""
    """Body of the ``initialize`` that made the session, in pools that may send it again."""
    created_s: int = 0
    """Unix time, for people; nothing is decided by it."""
    kind: str = ""
    """Empty: a session. Else what the backend keeps outside of sessions: ``task`` or ``request_state``."""


class Ended(Enum):
    """The session was ended, which is remembered for a while: a tombstone."""

    ENDED = "ended"


ENDED: Final = Ended.ENDED

Stored = SessionRecord | Ended | None
"""What a registry holds under a name. None: certainly nothing."""


class Listed(NamedTuple):
    """A session, as operators and backups see it."""

    name: str
    """``SessionKey.name``."""
    route: str
    """Empty where only the name is known."""
    record: SessionRecord
    expires_s: float | None
    """Seconds until it expires unless it is used; None: not known here."""


class Page(NamedTuple):
    sessions: list[Listed]
    cursor: str
    """Where the next page begins, opaque; empty: this was the last."""


class SessionStore(Protocol):
    """Methods that may need I/O return either the value or an awaitable of it, so that a
    warm lookup costs no task. Awaitables raise StoreError when the registry fails."""

    name: str
    """Label of the store in metrics: ``memory``, ``redis``, ``signed``."""

    def start(self) -> None:
        """Begin background work; needs a running event loop. Idempotent."""

    def get(self, key: SessionKey, principal: str) -> SessionRecord | Awaitable[SessionRecord | None] | None:
        """The session, or None if there certainly is none *for this principal*. Counts as use
        (slides the TTL), unless it is somebody else's: then nothing changes."""

    def reread(
        self, key: SessionKey, principal: str
    ) -> SessionRecord | Awaitable[SessionRecord | None] | None:
        """Like ``get``, but always asks the registry, and fails if that fails: what was known before
        is in doubt, because a backend has disowned the session or was lost."""

    def issue(self, key: SessionKey, record: SessionRecord) -> tuple[SessionKey, SessionRecord]:
        """How a new session is to be called and stored. ``key`` has the backend's own id. Raises
        StoreError if there is no legal name for it. The caller then calls ``create``."""

    def create(self, key: SessionKey, record: SessionRecord) -> bool | Awaitable[bool]:
        """Store a new session; False if the key exists already (never overwritten)."""

    def move(self, key: SessionKey, old: SessionRecord, new: SessionRecord) -> bool | Awaitable[bool]:
        """Replace ``old``; False if it is not what is stored (somebody was quicker)."""

    def delete(self, key: SessionKey) -> Awaitable[None] | None:
        """Forget the session. Idempotent. Even when the awaitable raises StoreError this process
        will not route the session again, and goes on trying to tell the others."""

    def claim(self, key: SessionKey, seconds: float) -> bool | Awaitable[bool]:
        """Become the only replica that makes the session anew, for at most so long. A replica that has
        the claim may claim again."""

    def disclaim(self, key: SessionKey) -> None:
        """Give the claim back early, also one of which it is not known whether it was granted."""

    def touch(self, key: SessionKey) -> None:
        """The session is in use: a stream or a call is open on it. To be called at least once in
        ``TOUCHES`` parts of the time to live."""

    def count(self, route: str) -> int:
        """Sessions known to this process."""

    # --- operations; by ``name``, because registries do not know the ids --------------

    def page(self, cursor: str, limit: int) -> Page | Awaitable[Page]:
        """About ``limit`` sessions, from ``cursor`` (empty: the first). Sessions that come and go
        meanwhile may or may not be seen; a session that stays is seen at least once. Raises
        ValueError for a cursor that was not issued here."""

    def show(self, name: str) -> Listed | Awaitable[Listed | None] | None: ...

    def end(self, name: str) -> bool | Awaitable[bool]:
        """``delete`` by name; False if there is no such session."""

    def restore(self, sessions: Sequence[Listed]) -> int | Awaitable[int]:
        """Take sessions of a backup back, except those that exist or were ended; how many."""

    def health(self) -> tuple[bool, str]:
        """Whether the registry can be asked, and a sentence for operators without addresses."""

    def sweep(self, at_s: float) -> None:
        """Do what is due; a job for the Ticker."""

    async def aclose(self) -> None: ...


T = TypeVar("T")


class Later(Awaitable[T]):
    """An awaitable that begins when it is awaited: one that nobody awaits after all, because the
    client left in the same moment, was never begun."""

    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[..., Awaitable[T]], *arguments: object) -> None:
        self._function = function
        self._arguments = arguments

    def __await__(self) -> Generator[Any, Any, T]:
        return self._function(*self._arguments).__await__()


async def settled(value: T | Awaitable[T]) -> T:
    """The value of what may have been answered at once."""
    return await value if isinstance(value, Awaitable) else value


class Watcher(Protocol):
    """Hears what this process knows. Every ``learnt`` is followed by one ``forgot`` with the same
    record, unless the store is closed first. A move is a ``forgot`` and a ``learnt``."""

    def learnt(self, key: SessionKey, record: SessionRecord) -> None: ...

    def forgot(self, key: SessionKey, record: SessionRecord, *, is_over: bool) -> None:
        """``is_over``: the session ended or is at another backend now, and so must its streams. Else
        it has expired, or was pushed out of this process's memory."""


class Registry(Protocol):
    """What replicas share. Every awaitable is answered within the budget of the registry (at most
    250 ms) or raises StoreError; nothing else is raised. ``name`` is ``SessionKey.name``.

    ``on_change(name)``: another replica (or this one) ended or moved that session.
    ``on_revive(name)``: that id was ended, and has been issued again.
    ``on_reset()``: the connection is new; changes may have been missed and writes may be lost.
    """

    on_change: Callable[[str], None]
    on_revive: Callable[[str], None]
    on_reset: Callable[[], None]

    def start(self) -> None:
        """Connect in the background, and stay connected. Needs a running event loop. Idempotent."""

    def fetch(self, name: str) -> Awaitable[Stored]:
        """One operation. Changes nothing, not even the time to live."""

    def create(self, name: str, record: SessionRecord) -> Awaitable[bool]:
        """Store if there is nothing but perhaps a tombstone; the acknowledgement is awaited."""

    def refresh(self, name: str) -> Awaitable[Stored]:
        """Begin the time to live anew, if there is anything; returns what there is."""

    def replace(self, name: str, old: SessionRecord | None, new: SessionRecord) -> Awaitable[bool]:
        """Compare and set, announced to all. ``old`` None: only if there is nothing, not even a tombstone."""

    def end(self, name: str) -> Awaitable[None]:
        """Leave a tombstone, announced to all."""

    def claim(self, name: str, token: str, seconds: float) -> Awaitable[bool]:
        """A lock that expires by itself; ``token`` is the caller's. Whoever has it may take it again,
        because the answer may have been lost."""

    def disclaim(self, name: str, token: str) -> Awaitable[None]: ...

    def page(self, cursor: str, limit: int) -> Awaitable[Page]:
        """As SessionStore.page; tombstones are left out. Not bound to the budget, only to 5 s."""

    def show(self, name: str) -> Awaitable[Listed | None]: ...

    def restore(self, session: Listed) -> Awaitable[bool]:
        """Store with its remaining time to live, if there is nothing, not even a tombstone."""

    def health(self) -> tuple[bool, str]: ...

    async def aclose(self) -> None:
        """Idempotent."""
