"""Which replica holds a task or a request state: learnt from responses, looked up for requests. Pure.

Both exist from revision 2026-07-28 on, where requests have no session: only the body of a response says
that the backend keeps something to which a later request comes back.

Rules of this file:
1. Nothing is authorised by what is learnt here; it only says where to ask first. So a member that comes
   twice may count as its last, and whatever cannot be read counts as nothing: no input raises.
2. Bodies and events above the limit are not looked at and not kept. Cost is linear in the bytes,
   however they are cut.
3. There is no search for words before a text is decoded: JSON may escape any letter of them, and
   msgspec skips what it is not asked for as fast as such a search (64 KB in 25 µs).
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal, NamedTuple

import msgspec

from mcp_proxy.envelope import Envelope, Kind
from mcp_proxy.sessions import NAME_BYTES, SessionKey

What = Literal["task", "request_state"]


class Owned(NamedTuple):
    """Something that one backend keeps and clients refer to."""

    kind: What
    value: bytes
    """UTF-8, not empty, of any length and any characters. A request state is a secret, a task id may be."""


def owner_key(pool: str, principal: str, owned: Owned) -> SessionKey:
    """Under which session stores keep the owner. Paths of routes begin with a slash, so that no session
    has such a key. The value is hashed: it may be long, and no legal session id; with the principal,
    because backends that count their tasks give the same id to several."""
    prefix = "task" if owned.kind == "task" else "state"
    text = f"{len(principal)}:{principal}".encode() + owned.value
    name = hashlib.blake2b(text, digest_size=NAME_BYTES).hexdigest()
    return SessionKey(f"{prefix}:{pool}", name.encode())


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""All that decoding a text raises that is no JSON, or of another shape than it should have."""


def _owned(kind: What, value: str | None) -> list[Owned]:
    return [Owned(kind, value.encode())] if value else []


# Responses


class _Result(msgspec.Struct, gc=False):
    resultType: str | None = None
    taskId: str | None = None
    requestState: str | None = None


class _Response(msgspec.Struct, gc=False):
    result: _Result


_decode_response = msgspec.json.Decoder(_Response).decode

_blank_line = re.compile(rb"[\r\n](?:(?<=\r)\n|(?<!\r)|(?!\n))(?:\r\n|\n|\r(?!\n))+")
"""Two line ends and all that follow at once. CR LF is one, never two: no alternative takes its CR alone,
so there is nothing to go back to. (A set comes first: the search for that is three times as fast as for
alternatives. Possessive quantifiers would say the same, but are wrong in Python before 3.11.5.)"""
_LINE_END: Final = b"\r\n"
_BOM: Final = b"\xef\xbb\xbf"


class Tap:
    """Looks at one response: at its body, or at its event stream piece by piece. Keeps at most
    ``limit_bytes`` of an event that has not ended."""

    __slots__ = ("_event", "_is_first", "_is_skipping", "_limit_bytes", "_tail")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._event = bytearray()
        """Beginning of an event, without ``_tail``."""
        self._tail = b""
        """The line end with which the last chunk ended: half of a blank line, or of a CR LF."""
        self._is_skipping = False
        """The event is too large."""
        self._is_first = True

    def whole(self, body: bytes) -> list[Owned]:
        """What an ``application/json`` response tells."""
        return _learn(body) if len(body) <= self._limit_bytes else []

    def feed(self, chunk: bytes) -> list[Owned]:
        """What the events tell that end in this piece of a ``text/event-stream``. An event that the
        stream breaks off tells nothing (HTML, server-sent events: parsing)."""
        learnt: list[Owned] = []
        text, start = self._tail + chunk, 0
        for blank in _blank_line.finditer(text):
            self._keep(text, start, blank.start())
            learnt += self._end_event()
            start = blank.end()
        end = len(text)
        while end > start and text[end - 1] in _LINE_END:
            end -= 1  # at most twice, as there is no blank line
        self._keep(text, start, end)
        self._tail = text[end:]
        return learnt

    def _keep(self, text: bytes, start: int, end: int) -> None:
        if len(self._event) + end - start > self._limit_bytes:
            self._is_skipping = True
            self._event = bytearray()
        elif not self._is_skipping:
            self._event += memoryview(text)[start:end]

    def _end_event(self) -> list[Owned]:
        event, is_first = bytes(self._event), self._is_first
        self._event = bytearray()
        self._is_first = self._is_skipping = False
        if b"data" not in event:
            return []  # a comment that keeps the stream alive
        return _learn(_data(event.removeprefix(_BOM) if is_first else event))


def _data(event: bytes) -> bytes:
    """The data of an event: values of its ``data`` lines, each without one leading space."""
    values = []
    for line in event.splitlines():  # bytes break at CR, LF and CR LF only, as the format does
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values)


def _learn(text: bytes) -> list[Owned]:
    try:
        result = _decode_response(text).result
        if result.resultType == "task":
            return _owned("task", result.taskId)
        if result.resultType == "input_required":
            return _owned("request_state", result.requestState)
    except _UNREADABLE:
        pass
    return []


# Requests

_TASK_METHODS: Final = frozenset(("tasks/get", "tasks/update", "tasks/cancel"))


class _StateParams(msgspec.Struct, gc=False):
    requestState: str | None = None


class _StateRequest(msgspec.Struct, gc=False):
    params: _StateParams


class _FirstTask(msgspec.Struct, array_like=True, gc=False):
    """A list of which the rest is skipped."""

    taskId: str | None = None


class _Filter(msgspec.Struct, gc=False):
    taskIds: _FirstTask


class _ListenParams(msgspec.Struct, gc=False):
    notifications: _Filter


class _ListenRequest(msgspec.Struct, gc=False):
    params: _ListenParams


_decode_state = msgspec.json.Decoder(_StateRequest).decode
_decode_listen = msgspec.json.Decoder(_ListenRequest).decode


def asked(envelope: Envelope, body: bytes) -> list[Owned]:
    """What a request of revision 2026-07-28 comes back to, at most one thing. ``body`` is that of the
    envelope; it is read again only for a request state and for ``subscriptions/listen``.

    That may list tasks of several backends (``params.notifications.taskIds``); no backend
    can serve them all, so the first one counts."""
    if envelope.kind is not Kind.REQUEST:
        return []
    if envelope.method in _TASK_METHODS:
        return _owned("task", envelope.name)
    try:
        if envelope.method == "subscriptions/listen":
            return _owned("task", _decode_listen(body).params.notifications.taskIds.taskId)
        if envelope.has_request_state:
            return _owned("request_state", _decode_state(body).params.requestState)
    except _UNREADABLE:
        pass
    return []
