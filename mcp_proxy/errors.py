"""Errors say whose fault it is, in which phase it happened and whether a retry is safe.

Library exceptions are mapped to these in the one file that imports the library.
"""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """Who ended an exchange. The value is the first letter of the termination state."""

    NONE = "-"
    CLIENT = "C"
    BACKEND = "S"
    PROXY = "P"
    TIMEOUT = "T"
    DRAIN = "D"

    __hash__ = object.__hash__  # Enum's is written in Python; every record looks one up


class Phase(Enum):
    """Where an exchange ended. The value is the second letter of the termination state."""

    NONE = "-"
    ADMIT = "R"
    """Reading and judging the request."""
    ROUTE = "Q"
    """Choosing a backend, looking up the session."""
    CONNECT = "C"
    HEAD = "H"
    """Request sent, waiting for the response head."""
    BODY = "D"
    """Relaying the response body."""

    __hash__ = object.__hash__  # Enum's is written in Python; every record looks one up


class UpstreamError(Exception):
    """A backend did not answer as it should.

    phase: CONNECT, HEAD or BODY.
    kind: ``refused`` ``timeout`` ``lost`` ``invalid`` ``unresolved`` ``exhausted`` (closed
        list). The last two are not the backend's fault: its name could not be resolved, or
        this process is out of file descriptors.
    sent: whether bytes of the request may have reached the backend. False makes it
        safe to go elsewhere with any method.
    stale: a reused idle connection ended before any byte of the response.
    """

    __slots__ = ("detail", "kind", "phase", "sent", "stale")

    def __init__(self, phase: Phase, kind: str, detail: str, *, sent: bool, stale: bool = False) -> None:
        super().__init__(f"{phase.name.lower()}: {detail}")
        self.phase = phase
        self.kind = kind
        self.detail = detail
        self.sent = sent
        self.stale = stale


class StoreError(Exception):
    """The session registry could not be asked. Never the same as "unknown session"."""


class NotAsked(StoreError):
    """There was no use in asking: the registry is known to be away, or too many wait for it."""


class StartupError(Exception):
    """The proxy cannot start (port taken, unreadable certificate). Exit code 3."""
