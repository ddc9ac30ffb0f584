"""The access line: one JSON object per exchange, written where no request has to wait for it.

Rules of this file:
* A sink never raises and never blocks. What cannot be written waits in a bounded buffer; what does
  not fit is dropped whole and counted.
* Lines are whole, valid UTF-8 and free of control characters, whatever a client put into a name.
* Secrets stay out: no header, no body, no session id; resource URIs lose query, fragment and userinfo.
* Flags of a descriptor that we did not open are never changed. O_NONBLOCK belongs to the open file
  *description*: setting it on an inherited stdout would also set it for stderr (``2>&1``), for other
  workers and for the shell behind the terminal, whose writes then fail. Instead, before every write
  to anything but a regular file the descriptor is polled, and at most PIPE_BUF bytes are written:
  POSIX makes such a write atomic, and poll says that it has room. Another process, such as the next
  worker, may fill the same pipe between the two calls, so a pipe is opened anew where the system
  allows that: the new description is ours, and a write to it never waits. (Elsewhere we would wait
  for the reader, as any print would.)
"""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import stat
import time
from typing import TYPE_CHECKING

import msgspec

from mcp_proxy.clock import now
from mcp_proxy.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

    from mcp_proxy.telemetry import RequestRecord

logger = logging.getLogger("mcp_proxy")

STDOUT = 1

FLUSH_BYTES = 32 * 1024
"""Some 80 lines per system call; at 5,000 requests a second a write every 16 ms."""
BUFFER_LIMIT_BYTES = 1024 * 1024
"""Some 2,600 lines: half a second of a busy proxy, and small beside its other buffers."""
TEXT_LIMIT = 256
"""Characters kept of a client's text. MCP names are below 128; a URI's start tells enough."""
BATCH = 64
"""Records encoded together; a tenth of a second at 640 requests a second."""
_MILLISECONDS = [f".{ms:03d}Z" for ms in range(1000)]
_NO_ROOM = frozenset({errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors that pass, by themselves or by log rotation: the lines are kept until there is room."""
PIPE_BUF = select.PIPE_BUF
"""The longest write that a pipe takes whole or not at all (4096 on Linux)."""
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
CLOSE_WAIT_S = 0.25
"""How long ``close`` waits in all for a slow reader before it gives the rest up."""

_UNSEEN = re.compile(
    "[\x7f-\x9f"  # DEL and C1: U+009B alone begins a terminal's control sequence
    "\u2028-\u202e\u2066-\u2069\u061c"  # line separators, changes of direction
    "\xad\u200b-\u200f\u2060-\u2065\ufeff]"  # hidden
)
"""What JSON lets through raw although it acts on a terminal or makes a line read as another."""


class AccessLine(msgspec.Struct, frozen=True, gc=False):
    """One line as it is written: every field always present, in this order."""

    ts: str
    """End of the exchange, RFC 3339, UTC, milliseconds."""
    route: str
    pool: str
    backend: str
    era: str
    http_method: str
    method: str
    name: str
    kind: str
    status: int
    reason: str
    session: str
    peer: str
    duration_ms: float
    upstream_ms: float
    overhead_ms: float | None
    """``duration - upstream``, the proxy's own time; null when no backend was asked."""
    bytes_in: int
    bytes_out: int
    stream: bool
    attempts: int
    end: str
    """Who ended the exchange and where: values of ``Fault`` and ``Phase``, ``--`` is a clean end."""
    request_id: str
    """``X-Request-Id``."""
    principal: str
    """32 hex digits that stand for who asked, empty for nobody in particular."""
    ttfb_ms: float | None
    """Until the head of the answer left; null when none did."""
    trace: str
    """Trace id, 32 hex digits, when the exchange was sampled."""


class AccessLog:
    """A ``Sink`` that writes access lines to a file that it opens, or to an inherited descriptor.

    ``target``: a path (created with mode 0640, appended to, reopened by ``reopen``), or a descriptor
    such as ``STDOUT``, which stays open when the log is closed. Raises StartupError when the file
    cannot be opened. Somebody calls ``tick`` every 100 ms or so, and ``close`` in the end.
    """

    __slots__ = ("_encode", "_out", "_records", "_second", "_second_text")

    def __init__(self, target: Path | int) -> None:
        self._out = _Output(target)
        self._encode = msgspec.json.Encoder().encode_lines
        self._records: list[RequestRecord] = []
        self._second = -1
        self._second_text = ""

    @property
    def dropped(self) -> int:
        """Lines lost so far: the buffer was full, or the reader went away."""
        return self._out.dropped

    def record(self, record: RequestRecord) -> None:
        """Keep one record; a batch of them is encoded together, which costs half as much."""
        self._records.append(record)
        if len(self._records) >= BATCH:
            self._write_lines()

    def tick(self, at_s: float) -> None:
        """Write out what has gathered. ``at_s`` is the ticker's and not needed."""
        self._write_lines()
        self._out.flush()

    def _write_lines(self) -> None:
        records, self._records = self._records, []  # whatever happens, these are not tried again
        lines = [self._line(record) for record in records]
        try:
            encoded = self._encode(lines)
        except UnicodeEncodeError:
            encoded = self._encode([without_surrogates(line) for line in lines])
        # Bytes below 0x20 have been escaped by the encoder; DEL and all beyond ASCII have not.
        if 0x7F in encoded or not encoded.isascii():
            encoded = _UNSEEN.sub(_escaped, encoded.decode()).encode()
        self._out.append(encoded, len(lines))

    def reopen(self) -> None:
        """The file was renamed by log rotation: go on in a new one of the old name.

        When that fails, lines keep going to the old file, and the log says so. No effect on an
        inherited descriptor.
        """
        self._write_lines()
        self._out.reopen()

    def close(self) -> None:
        """Write out the rest, waiting at most ``CLOSE_WAIT_S`` for a slow reader. Idempotent."""
        self._write_lines()
        self._out.close()

    def _line(self, record: RequestRecord) -> AccessLine:
        second = int(record.time_s)
        if second != self._second:
            self._second = second
            self._second_text = text_of(second)
        return line_of(record, self._second_text)


def text_of(second: int) -> str:
    """A whole second as the line has it, but for the milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def line_of(record: RequestRecord, second_text: str) -> AccessLine:
    """``second_text``: ``text_of`` the second in which the exchange ended."""
    name = record.name
    duration_us = int(record.duration_s * 1e6)
    upstream_us = int(record.upstream_s * 1e6)
    return AccessLine(
        second_text + _MILLISECONDS[int((record.time_s - int(record.time_s)) * 1e3)],
        record.route,
        record.pool,
        record.backend,
        record.era,
        record.http_method,
        record.method[:TEXT_LIMIT],
        _public_name(name) if ":" in name or "?" in name else name[:TEXT_LIMIT],
        record.kind,
        record.status,
        record.reason,
        record.session,
        record.peer,
        duration_us / 1e3,
        upstream_us / 1e3,
        (duration_us - upstream_us) / 1e3 if record.attempts else None,
        record.bytes_in,
        record.bytes_out,
        record.is_stream,
        record.attempts,
        # ``value`` is a property written in Python, three times the cost of the attribute.
        record.ended_by._value_ + record.phase._value_,
        record.request_id,
        record.principal,
        int(record.ttfb_s * 1e6) / 1e3 if record.status else None,
        "" if record.trace is None else record.trace.text,
    )


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _public_name(name: str) -> str:
    """The name without what a URI may hold of secrets: query, fragment and userinfo."""
    name = name.partition("?")[0]
    if ":" in name:
        name = name.partition("#")[0]
        # RFC 3986 section 3.2: the authority ends at the first "/". Lenient parsers take any number
        # of slashes before it, so no number of them keeps a password in the line.
        scheme, _, rest = name.partition(":")
        hier = rest.lstrip("/")
        slashes = rest[: len(rest) - len(hier)]
        authority, slash, path = hier.partition("/")
        name = f"{scheme}:{slashes}{authority.rpartition('@')[2]}{slash}{path}"
    return name[:TEXT_LIMIT]


def without_surrogates(line: AccessLine) -> AccessLine:
    """A lone surrogate has no UTF-8. It cannot come from a body (``envelope.py`` refuses it)."""
    texts = {
        field: value.encode("utf-8", "replace").decode()
        for field, value in msgspec.structs.asdict(line).items()
        if isinstance(value, str)
    }
    return msgspec.structs.replace(line, **texts)


class _Output:
    """Whole lines through a bounded buffer to a descriptor. No call raises."""

    __slots__ = (
        *("_buffer", "_fd", "_is_file", "_is_ours", "_is_stuck", "_is_torn", "_path", "_poll"),
        "dropped",
    )

    def __init__(self, target: Path | int) -> None:
        self._path = None if isinstance(target, int) else target
        self._buffer = bytearray()
        self._is_stuck = False
        """The last write found no room: wait for the next tick instead of asking per line."""
        self._is_torn = False
        """The first line of the buffer has partly been written."""
        self.dropped = 0
        try:
            self._use(_reopened(target) if isinstance(target, int) else _open(target))
        except OSError as error:
            raise StartupError(f"access log {target}: {error.strerror}") from error
        self._is_ours = self._fd != target

    def _use(self, fd: int) -> None:
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._fd: int | None = fd

    def append(self, lines: bytes, count: int) -> None:
        """Add ``count`` whole lines."""
        buffer = self._buffer
        if self._fd is None or len(buffer) + len(lines) > BUFFER_LIMIT_BYTES:
            self.dropped += count
            return
        buffer += lines
        if len(buffer) > FLUSH_BYTES and not self._is_stuck:
            self.flush()

    def flush(self) -> None:
        """Write as much as there is room for."""
        self._is_stuck = False
        while self._buffer and self._fd is not None:
            if not self._is_file and not self._poll.poll(0):
                self._is_stuck = True
                return
            piece = self._piece()
            try:
                written = os.write(self._fd, piece)
            except OSError as error:
                self._failed(error)
                return
            self._is_torn = piece[written - 1] != 0x0A
            del self._buffer[:written]

    def _piece(self) -> bytes:
        """What the next write takes: all for a file, else lines of at most PIPE_BUF together."""
        if self._is_file:
            return bytes(self._buffer)
        end = self._buffer.rfind(b"\n", 0, PIPE_BUF) + 1
        return bytes(self._buffer[: end or PIPE_BUF])

    def _failed(self, error: OSError) -> None:
        self._is_stuck = True
        if error.errno not in _NO_ROOM:
            # The reader is gone or the device is broken. A later reader begins with a whole line.
            self._discard()

    def _discard(self) -> None:
        self.dropped += self._buffer.count(b"\n")
        self._buffer.clear()
        self._is_torn = False

    def reopen(self) -> None:
        if self._path is None or self._fd is None:
            return
        self.flush()
        try:
            fd = _open(self._path)
        except OSError as error:
            logger.warning("access log %s: cannot be opened anew: %s", self._path, error.strerror)
            return
        if self._is_torn:
            # The disk was full: the rest of this line makes no sense in another file.
            del self._buffer[: self._buffer.index(b"\n") + 1]
            self._is_torn = False
            self.dropped += 1
        os.close(self._fd)
        self._use(fd)
        self._is_stuck = False

    def close(self) -> None:
        if self._fd is None:
            return
        self.flush()
        ends_s = now() + CLOSE_WAIT_S
        while self._buffer and not self._is_file and (left_s := ends_s - now()) > 0:
            self._poll.poll(left_s * 1e3)
            self.flush()
        self._discard()
        if self._is_ours:
            os.close(self._fd)
        self._fd = None


def _open(path: Path) -> int:
    # O_NONBLOCK: a FIFO without a reader is an error now instead of a proxy that never starts.
    # This description is our own, nobody else is surprised by the flag.
    return os.open(path, _FLAGS | os.O_CREAT, 0o640)


def _reopened(fd: int) -> int:
    """The same pipe under a description of our own; ``fd`` if it is no pipe, or not allowed."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    try:
        return os.open(f"/proc/self/fd/{fd}", _FLAGS)
    except OSError:  # no /proc, or the pipe belongs to another user
        return fd
