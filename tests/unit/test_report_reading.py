"""Access logs as they are found: with other lines, torn, packed, damaged, in pieces; and times as typed."""

from __future__ import annotations

import gzip
import io
from typing import Any

import pytest

from mcp_proxy.telemetry.access_log import PIPE_BUF
from mcp_proxy.telemetry.report.period import moment
from mcp_proxy.telemetry.report.reading import LINE_LIMIT_BYTES, PIECE_BYTES, Broken, Reader
from mcp_proxy.telemetry.report.totals import Totals
from tests.unit.reported import counted, line, report

# --- what files may hold -----------------------------------------------------------------------------

JUNK = {
    "text": b"2025-11-21 INFO started\n",
    "another log": b'{"ts":"2025-11-21T01:53:20Z","level":"info","message":"started"}\n',
    "another type": b'{"ts":1}\n',
    "no object": b"[]\n",
    "not UTF-8": line().replace(b"get_forecast", b"\xff"),
    "deep": b"[" * 9000 + b"\n",
    "two in a line": line()[:-1] + line(),
    "torn in the middle": line()[:50] + line(),
    "a lone surrogate": line().replace(b"get_forecast", b"\\ud800"),
    "a number without end": line().replace(b"12.5", b"1e999"),
    "a size that no figure can have": line(bytes_in=int("9" * 400)),
    "less than nothing": line(bytes_out=-1),
    "an object over two lines": line()[:-2] + b"\n",
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_a_line_that_is_none_is_counted_and_left_out(junk: bytes) -> None:
    totals, unreadable = counted(line() + junk + line())

    assert (totals.report().total.calls, unreadable) == (2, 1)


def test_the_last_line_may_be_torn_or_without_its_end() -> None:
    assert counted(line() + line()[:100])[1] == 1
    assert report(line() + line()[:-1]).total.calls == 2


def test_empty_lines_and_other_line_ends_are_nothing() -> None:
    totals, unreadable = counted(b"\n" + line()[:-1] + b"\r\n \n" + line())

    assert (totals.report().total.calls, unreadable) == (2, 0)


def test_nothing_is_a_report_of_nothing() -> None:
    found = report(b"")

    assert (found.rows, found.other, found.total.calls, found.first, found.last) == ([], None, 0, "", "")


@pytest.mark.parametrize("size", [LINE_LIMIT_BYTES + 1, 3 * PIECE_BYTES, 5 * PIECE_BYTES - 1])
def test_a_line_without_end_is_left_out_and_not_kept(size: int) -> None:
    totals, unreadable = counted(line() + b"x" * size + b"\n" + line() * 3, b"x" * size)

    assert (totals.report().total.calls, unreadable) == (4, 2)


def test_a_pipe_gives_lines_in_pieces_of_any_size() -> None:
    class Pipe(io.RawIOBase):
        """Gives so many bytes at a time."""

        def __init__(self, content: bytes, size: int) -> None:
            self._content, self._size = io.BytesIO(content), size

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            piece = self._content.read(min(self._size, len(buffer)))
            buffer[: len(piece)] = piece
            return len(piece)

    content = b"".join(line(name=f"t{number}") for number in range(30))
    for size in (1, 7, len(line()), PIPE_BUF):
        reader, totals = Reader(), Totals()
        for lines in reader.read(io.BufferedReader(Pipe(content, size))):
            totals.add(lines)
        assert (totals.report().total.calls, reader.unreadable) == (30, 0)


def test_several_gzipped_files_in_one_are_read_to_the_last() -> None:
    assert report(gzip.compress(line()) + gzip.compress(line() * 2)).total.calls == 3


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (gzip.compress(line() * 5)[:-9], "ends before its end"),
        (gzip.compress(line() * 5)[:-8] + b"12345678", "damaged"),
        (b"\x1f\x8bxxxxxxxxxxxxx", "damaged"),
    ],
)
def test_damaged_compression_is_broken(damaged: bytes, words: str) -> None:
    with pytest.raises(Broken, match=words):
        counted(damaged)


def test_a_device_that_fails_is_broken() -> None:
    class Failing(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.given += 1
            if self.given > 1:
                raise OSError(5, "Input/output error")
            buffer[:2] = b"{}"
            return 2

    with pytest.raises(Broken, match="Input/output error"):
        list(Reader().read(io.BufferedReader(Failing())))


# --- times -----------------------------------------------------------------------------------------------

AT_S = 1_763_690_000.1239


@pytest.mark.parametrize(
    ("text", "ts"),
    [
        ("2025-11-21", "2025-11-21T00:00:00.000Z"),
        ("2025-11-21T14:30", "2025-11-21T14:30:00.000Z"),
        ("2025-11-21 14:30:05.5", "2025-11-21T14:30:05.500Z"),
        ("2025-11-21T14:30:00Z", "2025-11-21T14:30:00.000Z"),
        ("2025-11-21T14:30:00+01:00", "2025-11-21T13:30:00.000Z"),
        ("90s", "2025-11-21T01:51:50.123Z"),
        ("30m", "2025-11-21T01:23:20.123Z"),
        ("2h", "2025-11-20T23:53:20.123Z"),
        ("7d", "2025-11-14T01:53:20.123Z"),
    ],
)
def test_a_time_is_written_as_in_the_log(text: str, ts: str) -> None:
    assert moment(text, AT_S) == ts


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2h30m", "-2h", "2025-13-01", "999999d", "0001-01-01T00:00+01:00"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        moment(text, AT_S)
