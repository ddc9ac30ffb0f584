"""What a line of the application log looks like, whoever chose the words in it.

Rules of this file: formatters are asked directly. What concerns a whole process is in
``test_app_log_process.py``.
"""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from typing import Any, NoReturn

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.config.layers import LOG_LEVELS
from mcp_proxy.telemetry.app_log import (
    FIELDS,
    LEVELS,
    MESSAGE_LIMIT,
    TRACEBACK_LIMIT,
    JsonFormatter,
    TextFormatter,
    printable,
)

HOSTILE = (
    "a\nb",
    "a\r\n2026-01-01 00:00:00,000 CRITICAL mcp_proxy: forged",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "\x7f\x00\x08\x0b\x0c\x85",
    "\u2028\u2029\u202e\u2066\u200b\ufeff",
    "\U000e0041",
    "\udc80\ud800",
    '"}{"level":"critical',
    "\U0001f600 é",
)


def record(msg: object, *args: object, **over: Any) -> logging.LogRecord:
    made = logging.LogRecord("mcp_proxy", logging.WARNING, "/x.py", 7, msg, args, None)
    made.created = 1_763_690_000.1239
    made.process = 42
    made.__dict__.update(over)
    return made


def failed(error: BaseException) -> logging.LogRecord:
    try:
        raise error
    except BaseException as raised:
        return record("a task failed", exc_info=(type(raised), raised, raised.__traceback__))


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    """Read as strictly as a shipper may."""
    line: dict[str, Any] = msgspec.json.decode(JsonFormatter().format(made))
    return line


def as_text(made: logging.LogRecord) -> str:
    return TextFormatter().format(made)


def acts(text: str) -> list[str]:
    """What is in it that a terminal obeys or a reader cannot see."""
    return [each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


class Unspeakable:
    def __repr__(self) -> NoReturn:
        raise RuntimeError("no")

    __str__ = __repr__


# --- a line --------------------------------------------------------------------------------------------


def test_a_json_line_has_these_fields() -> None:
    assert as_json(record("backend %s is down", "b")) == {
        "ts": "2025-11-21T01:53:20.123Z",
        "level": "warning",
        "logger": "mcp_proxy",
        "msg": "backend b is down",
        "pid": 42,
    }


def test_a_text_line_has_the_time_the_level_the_logger_and_of_workers_the_process() -> None:
    stamp = r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8},[0-9]{3}"
    assert re.fullmatch(stamp + r" WARNING mcp_proxy: well", as_text(record("well")))
    of_worker = TextFormatter(is_worker=True).format(record("well"))
    assert re.fullmatch(stamp + r" WARNING mcp_proxy\[42\]: well", of_worker)


def test_only_listed_fields_are_taken_over() -> None:
    given = dict.fromkeys(FIELDS, "x") | {"token": "secret", "taskName": "Task-1"}
    line = as_json(record("well", **given))
    assert set(line) == {"ts", "level", "logger", "msg", "pid", *FIELDS}


def test_an_exception_is_its_type_and_one_text() -> None:
    line = as_json(failed(ValueError("odd")))
    assert line["error"] == "ValueError"
    assert line["msg"] == "a task failed"
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["traceback"].endswith("ValueError: odd")
    assert as_json(failed(msgspec.DecodeError("odd")))["error"] == "msgspec.DecodeError"


def test_further_lines_of_a_text_are_those_of_a_traceback_and_indented() -> None:
    first, *rest = as_text(
        failed(ValueError("odd\n2026-01-01 00:00:00,000 CRITICAL mcp_proxy: forged"))
    ).split("\n")
    assert first.endswith("WARNING mcp_proxy: a task failed")
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in rest)


def test_outside_of_an_exception_there_is_no_traceback() -> None:
    assert "error" not in as_json(record("odd", exc_info=(None, None, None)))


# --- hostile texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_nobody_begins_a_line_or_acts_on_a_terminal(text: str) -> None:
    for made in (record("%s", text), record(text), record("x", name=text)):
        assert acts(as_text(made)) == []
        assert acts(JsonFormatter().format(made)) == []
    in_json, in_text = JsonFormatter().format(failed(ValueError(text))), as_text(failed(ValueError(text)))
    assert acts(in_json) == []
    assert set(acts(in_text)) == {"\n"}
    assert re.search(r"\n(?!  )", in_text) is None


@given(st.text(st.characters()))
def test_a_json_line_is_ascii_and_says_what_was_said(text: str) -> None:
    written = JsonFormatter().format(record("%s", text))
    assert written.isascii()
    said = text.encode("utf-8", "backslashreplace").decode().rstrip("\n")
    assert msgspec.json.decode(written)["msg"] == said


def test_what_can_be_read_is_not_escaped() -> None:
    assert printable("naïve \U0001f600 \\ 'x'") == "naïve \U0001f600 \\ 'x'"
    assert printable("a\tb\u202ec\U000e0041") == "a\\tb\\u202ec\\U000e0041"


def test_a_message_has_a_limit_and_says_how_much_is_missing() -> None:
    said = as_json(record("%s", "x" * (MESSAGE_LIMIT + 10)))["msg"]
    assert said == "x" * MESSAGE_LIMIT + "... (10 more)"


def test_a_traceback_has_a_limit_and_keeps_its_end() -> None:
    said = as_json(failed(ValueError("x" * TRACEBACK_LIMIT + "end")))["traceback"]
    assert len(said) == TRACEBACK_LIMIT + len("...")
    assert said.endswith("xend")


@pytest.mark.parametrize(
    "made",
    [
        record("%d and %s", "no number"),
        record("%s", Unspeakable()),
        record(Unspeakable()),
        failed(ValueError(Unspeakable())),
        record("%(key)s", {"other": 1}),
        record("%s", "x", exc_info=(ValueError, None, None)),
    ],
    ids=["arguments", "argument", "message", "error", "mapping", "half an error"],
)
def test_what_cannot_be_shown_is_a_line_all_the_same(made: logging.LogRecord) -> None:
    assert as_json(made)["level"] == "warning"
    assert "WARNING mcp_proxy: " in as_text(made)


def test_what_an_argument_raises_is_not_repeated() -> None:
    said = as_json(record("%s", Unspeakable()))["msg"]
    assert said == "a record could not be put into words: RuntimeError (/x.py:7)"


def test_a_record_is_one_write() -> None:
    class Pieces(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.pieces: list[str] = []

        def write(self, text: str) -> int:
            self.pieces.append(text)
            return len(text)

    out = Pieces()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter())
    handler.handle(failed(ValueError("x")))
    assert [piece.count("\n") for piece in out.pieces] == [1]
    assert out.pieces[0].endswith("\n")


def test_the_levels_are_those_of_the_flag() -> None:
    from mcp_proxy.cli.log_level import _LEVELS

    assert LEVELS == LOG_LEVELS == _LEVELS
