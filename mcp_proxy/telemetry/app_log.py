"""The application log: what the proxy says about itself, on standard error.

Rules of this file:
* A record never begins a second one and never speaks to a terminal, whatever a client, a backend or a file
  put into it. In ``text`` only tracebacks have further lines, and those are indented.
* A line is bounded, and making or writing one never raises: a full disk is no reason to fail a request.
  Nor does it wait: whoever reads standard error and stops must not stop the event loop. What there is no
  room for is lost.
* A JSON line is ASCII, so that it is valid JSON whatever encoding standard error has.
* One formatter for all: libraries, asyncio, warnings, and what ends the process.
* Libraries are not heard below WARNING, whatever the level: what clients for HTTP and Redis say there is the
  traffic itself, with the session ids and tokens in it. The level is that of our own logger.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Final, Literal, get_args

from mcp_proxy.telemetry.access_log import PIPE_BUF, text_of

if TYPE_CHECKING:
    from types import TracebackType

Level = Literal["critical", "error", "warning", "info", "debug"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
Form = Literal["text", "json"]

NAME: Final = "mcp_proxy"
"""The logger of this package."""

MESSAGE_LIMIT: Final = 8 * 1024
"""Characters. The longest sentence of ours, a list of problems of a backend, has some hundreds."""
TRACEBACK_LIMIT: Final = 32 * 1024
"""Characters, the last ones: what happened stands at the end. Of ours the longest have 6 KiB."""
FIELDS: Final = ("request_id", "pool", "backend")
"""What a record may have as a field of its own, given with ``extra``; anything else is not written."""

logger = logging.getLogger(NAME)


class TextFormatter(logging.Formatter):
    """A line for people. Of several workers it says which one, with ``is_worker``."""

    def __init__(self, *, is_worker: bool = False) -> None:
        super().__init__()
        self._is_worker = is_worker

    def format(self, record: logging.LogRecord) -> str:
        who = f"{record.name}[{record.process}]" if self._is_worker else record.name
        head = f"{self.formatTime(record)} {record.levelname} {who}: {message_of(record)}"
        lines = traceback_of(record).split("\n") if record.exc_info else []
        return "\n".join([printable(head), *(f"  {printable(line)}" for line in lines)])


class JsonFormatter(logging.Formatter):
    """One JSON object per record: ``ts`` (RFC 3339, UTC, milliseconds), ``level``, ``logger``, ``msg``,
    ``pid``, those of ``FIELDS`` that it has, and of an exception ``error`` (its type) and ``traceback``.
    Takes no arguments, so that a logging configuration can name it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": f"{text_of(int(record.created))}.{int(record.created % 1 * 1e3):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": message_of(record),
            "pid": record.process,
        }
        line |= {name: _clipped(str(found)) for name in FIELDS if (found := getattr(record, name, None))}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = _name_of(record.exc_info[0])
            line["traceback"] = traceback_of(record)
        # Lone surrogates stand for bytes of file names that are no UTF-8. Strict parsers refuse them.
        safe = {key: _encodable(value) if isinstance(value, str) else value for key, value in line.items()}
        return json.dumps(safe)


def message_of(record: logging.LogRecord) -> str:
    """Bounded; whatever is wrong with the record."""
    try:
        return _clipped(record.getMessage().rstrip("\n"))
    except Exception as error:  # wrong arguments, or one that cannot be shown
        where = f"{record.pathname}:{record.lineno}"
        return f"a record could not be put into words: {_name_of(type(error))} ({where})"


def traceback_of(record: logging.LogRecord) -> str:
    """Without a line break at the end; bounded."""
    kind, error, trace = record.exc_info or (None, None, None)
    try:
        text = "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
    except Exception as failure:  # code that is not ours may be asked to show itself
        text = f"no traceback: {_name_of(type(failure))}"
    return text if len(text) <= TRACEBACK_LIMIT else "..." + text[-TRACEBACK_LIMIT:]


def printable(text: str) -> str:
    """Without anything that acts on a terminal, hides, or changes direction: it is written as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _clipped(text: str) -> str:
    more = len(text) - MESSAGE_LIMIT
    return text if more <= 0 else f"{text[:MESSAGE_LIMIT]}... ({more} more)"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _name_of(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class Outlet(logging.Handler):
    """Writes to a descriptor, in pieces for which poll says that a pipe has room. A line that was not written
    whole is ended before the next one."""

    def __init__(self, fd: int, encoding: str) -> None:
        super().__init__()
        self._fd = fd
        self._encoding = encoding
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._is_torn = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")
            self._write(b"\n" + line if self._is_torn else line)
        except Exception:
            self.handleError(record)

    def _write(self, line: bytes) -> None:
        left = line
        while left and self._poll.poll(0):
            left = left[os.write(self._fd, left[:PIPE_BUF]) :]
            self._is_torn = bool(left)


# --- of this process -------------------------------------------------------------------------------


def begin(level: str, form: Form, *, is_worker: bool = False) -> None:
    """Everything that this process says goes to standard error in this form from now on."""
    handler = _handler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(is_worker=is_worker))
    logging.basicConfig(handlers=[handler], force=True)
    logging.raiseExceptions = False  # lines that cannot be written are lost, without further lines about them
    logging.captureWarnings(True)
    sys.excepthook = _unhandled
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_failed
    set_level(level)


def _handler() -> logging.Handler:
    try:
        return Outlet(sys.stderr.fileno(), sys.stderr.encoding)
    except (AttributeError, OSError, ValueError):  # there is none, or it is no file
        return logging.StreamHandler(sys.stderr)


def level() -> Level:
    """The one in force."""
    least = logger.getEffectiveLevel()
    return next((name for name in LEVELS if least >= number(name)), "debug")


def set_level(level: str) -> None:
    """Until the process ends. ``level``: one of ``LEVELS``."""
    least = number(level)
    logger.setLevel(least)
    logging.getLogger().setLevel(max(least, logging.WARNING))


def announce(sentence: str) -> None:
    """A warning that is written at every level: who changes what is said is always said."""
    logger.handle(logger.makeRecord(NAME, logging.WARNING, __file__, 0, sentence, (), None))


def number(level: str) -> int:
    """Of a level, as the library has it."""
    return logging.getLevelNamesMapping()[level.upper()]


def _unhandled(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logger.critical("the process ends with an error", exc_info=(kind, error, trace))


def _unraisable(failed: sys.UnraisableHookArgs) -> None:
    error = failed.exc_value
    info = None if error is None else (type(error), error, failed.exc_traceback)
    logger.error("%s: %r", failed.err_msg or "an error was ignored in", failed.object, exc_info=info)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    error = failed.exc_value
    if error is not None and not isinstance(error, SystemExit):
        logger.error("a thread failed", exc_info=(type(error), error, failed.exc_traceback))
