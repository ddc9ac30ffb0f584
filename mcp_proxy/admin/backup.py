"""The format of a backup of sessions: one JSON object per line, between a header and a trailer.

Rules of this file: pure. The trailer has the number of sessions, so that a backup that was cut short
is recognised. Whoever reads does not trust who wrote: a line is bounded before it is parsed, a key
that is not known is an error, and what would end up in a request to a backend is checked as strictly
as what comes from clients. Messages name the line and the cure, and repeat nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from mcp_proxy.headers import is_session_id
from mcp_proxy.sessions import INITIALIZE_LIMIT, Listed, SessionRecord

CONTENT_TYPE: Final = "application/x-ndjson"

LINE_LIMIT: Final = 64 * 1024
"""An ``initialize`` of ``INITIALIZE_LIMIT`` takes 22 KiB in base64; nothing else comes near."""

_END_KEY: Final = b'"mcp_proxy_sessions_end"'

# \Z and not $, which leaves room for a line feed.
_Name = Annotated[str, Meta(pattern=r"\A[0-9a-f]{40}\Z")]
_Route = Annotated[str, Meta(pattern=r"\A(?:/[!-~]*)?\Z", max_length=2048)]
_Backend = Annotated[str, Meta(pattern=r"\A[!-~]+\Z", max_length=2048)]
_Principal = Annotated[str, Meta(pattern=r"\A[!-~]*\Z", max_length=256)]
_Seconds = Annotated[float, Meta(gt=0, le=1e10)]
_Count = Annotated[int, Meta(ge=0, le=2**53)]


class InvalidBackup(Exception):
    """The message is a sentence with the line and a cure."""


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    mcp_proxy_sessions: int
    exported: _Count = 0
    """Unix time, for people."""


class _Trailer(msgspec.Struct, forbid_unknown_fields=True):
    mcp_proxy_sessions_end: _Count


class _Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: _Name
    backend: _Backend
    route: _Route = ""
    expires_in_s: _Seconds | None = None
    principal: _Principal = ""
    generation: _Count = 0
    created: _Count = 0
    upstream_id: Annotated[bytes, Meta(max_length=512)] = b""
    initialize: Annotated[bytes, Meta(max_length=INITIALIZE_LIMIT)] = b""


_encode = msgspec.json.encode
_read_header = msgspec.json.Decoder(_Header).decode
_read_line = msgspec.json.Decoder(_Line).decode
_read_trailer = msgspec.json.Decoder(_Trailer).decode


def header(exported_s: int) -> bytes:
    return _encode(_Header(mcp_proxy_sessions=1, exported=exported_s)) + b"\n"


def trailer(count: int) -> bytes:
    return _encode(_Trailer(count)) + b"\n"


def lines(sessions: Iterable[Listed]) -> bytes:
    """A part between the two. What expires this moment is not worth a line: see ``is_worth_a_line``."""
    return b"".join(_encode(_line(session)) + b"\n" for session in sessions)


def is_worth_a_line(session: Listed) -> bool:
    return session.expires_s is None or session.expires_s > 0


def _line(session: Listed) -> _Line:
    record = session.record
    return _Line(
        name=session.name,
        backend=record.backend,
        route=session.route,
        expires_in_s=None if session.expires_s is None else round(session.expires_s, 3) or 0.001,
        principal=record.principal,
        generation=record.generation,
        created=record.created_s,
        upstream_id=record.upstream_id,
        initialize=record.initialize,
    )


class Reader:
    """Feed it the bytes in any pieces; it holds at most one line. Raises InvalidBackup."""

    def __init__(self) -> None:
        self.count = 0
        """Sessions read so far."""
        self._number = 0
        self._is_over = False
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Listed]:
        """The sessions whose lines are whole now."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep(data)
            return []
        whole = bytes(self._rest) + data[:end]
        self._rest.clear()
        sessions: list[Listed] = []
        for line in whole.split(b"\n")[:-1]:
            session = self._take(line)
            if session is not None:
                sessions.append(session)
        self._keep(data[end:])
        return sessions

    def finish(self) -> Sequence[Listed]:
        """There is no more: the rest of the sessions. Raises InvalidBackup for a backup without its end."""
        last = self._finish_line() if self._rest else []
        if not self._number:
            raise InvalidBackup("the backup is empty: expected what `sessions export` wrote")
        if not self._is_over:
            raise InvalidBackup(
                f"the backup was cut short: it has {self.count} sessions and no last line; export it again"
            )
        return last

    def _finish_line(self) -> list[Listed]:
        try:
            return self.feed(b"\n")
        except InvalidBackup:
            if self._number == 1:
                raise
            raise InvalidBackup(
                f"line {self._number} is not whole: the backup was cut short; export it again"
            ) from None

    def _keep(self, data: bytes) -> None:
        self._rest += data
        if len(self._rest) > LINE_LIMIT:
            raise self._too_long(self._number + 1)

    def _too_long(self, number: int) -> InvalidBackup:
        return InvalidBackup(
            f"line {number} is longer than {LINE_LIMIT} bytes: no line of a backup is; export it again"
        )

    def _take(self, line: bytes) -> Listed | None:
        self._number += 1
        if len(line) > LINE_LIMIT:
            raise self._too_long(self._number)
        if self._is_over:
            raise InvalidBackup(f"line {self._number} follows the last line: import one backup at a time")
        try:
            if self._number == 1:
                self._begin(line)
                return None
            if _END_KEY in line:
                self._end(line)
                return None
            session = _listed(_read_line(line))
        except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
            raise InvalidBackup(
                f"line {self._number} is not a session of a backup: {_reason(error)}; "
                "remove the line and lower the count in the last one, or export again"
            ) from None
        self.count += 1
        return session

    def _begin(self, line: bytes) -> None:
        try:
            version = _read_header(line).mcp_proxy_sessions
        except (ValueError, RecursionError):
            raise InvalidBackup(
                "line 1 is not the first line of a backup: expected what `sessions export` wrote"
            ) from None
        if version != 1:
            raise InvalidBackup(
                f"line 1: format {version} is not known here: use the version of mcp-proxy that wrote it"
            )

    def _end(self, line: bytes) -> None:
        expected = _read_trailer(line).mcp_proxy_sessions_end
        if expected != self.count:
            raise InvalidBackup(
                f"line {self._number} says {expected} sessions and there are {self.count}: "
                "the backup is not whole; export it again"
            )
        self._is_over = True


def _reason(error: Exception) -> str:
    """msgspec names the place and the rule, and quotes no value but the name of an unknown key."""
    if isinstance(error, msgspec.ValidationError):
        text = str(error)
        return "it has a key that is not known" if "unknown field" in text else text
    return str(error) if isinstance(error, _BadLine) else "it is not JSON"


class _BadLine(ValueError):
    """The message quotes nothing."""


def _listed(line: _Line) -> Listed:
    if line.upstream_id and not is_session_id(line.upstream_id):
        raise _BadLine("upstream_id is not a session id")
    record = SessionRecord(
        backend=line.backend,
        principal=line.principal,
        upstream_id=line.upstream_id,
        generation=line.generation,
        initialize=line.initialize,
        created_s=line.created,
    )
    return Listed(line.name, line.route, record, line.expires_in_s)
