"""Access lines go to real files and pipes; every test reads back what a log shipper would see."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import unicodedata
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_proxy.errors import Fault, Phase, StartupError
from mcp_proxy.telemetry import RequestRecord, Sink
from mcp_proxy.telemetry.access_log import (
    BATCH,
    BUFFER_LIMIT_BYTES,
    FLUSH_BYTES,
    PIPE_BUF,
    TEXT_LIMIT,
    AccessLog,
)
from mcp_proxy.telemetry.traces import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALL = RequestRecord(
    time_s=1_763_690_000.1239,
    route="/weather/mcp",
    pool="weather",
    backend="http://10.0.0.11:8000/mcp",
    era="legacy",
    http_method="POST",
    method="tools/call",
    name="get_forecast",
    kind="request",
    status=200,
    reason="",
    session="0a1b2c3d",
    peer="10.1.2.3",
    duration_s=0.0125,
    upstream_s=0.0120,
    bytes_in=300,
    bytes_out=900,
    is_stream=False,
    attempts=1,
    ended_by=Fault.NONE,
    phase=Phase.NONE,
)


def call(**changes: object) -> RequestRecord:
    return msgspec.structs.replace(CALL, **changes)


def lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def written(*records: RequestRecord) -> bytes:
    """What the records look like in a file."""
    with tempfile.TemporaryFile() as file:
        log = AccessLog(file.fileno())
        for record in records:
            log.record(record)
        log.close()
        file.seek(0)
        return file.read()


def line(**changes: object) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(written(call(**changes)))
    return value


class Pipe:
    """A pipe that holds one page, and what has been read from it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.capacity = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.reader, False)
        self.content = b""

    def read(self) -> int:
        try:
            chunk = os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return 0
        self.content += chunk
        return len(chunk)

    def close_reader(self) -> None:
        os.close(self.reader)
        self.reader = -1

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_a_line_has_every_field_in_a_fixed_order() -> None:
    assert written(CALL) == (
        b'{"ts":"2025-11-21T01:53:20.123Z","route":"/weather/mcp","pool":"weather",'
        b'"backend":"http://10.0.0.11:8000/mcp","era":"legacy","http_method":"POST","method":"tools/call",'
        b'"name":"get_forecast","kind":"request","status":200,"reason":"","session":"0a1b2c3d",'
        b'"peer":"10.1.2.3","duration_ms":12.5,"upstream_ms":12.0,"overhead_ms":0.5,"bytes_in":300,'
        b'"bytes_out":900,"stream":false,"attempts":1,"end":"--","request_id":"","principal":"",'
        b'"ttfb_ms":0.0,"trace":""}\n'
    )


def test_the_timestamp_follows_the_clock_over_the_second() -> None:
    times = (1_763_690_000.0, 1_763_690_000.9999, 1_763_690_001.0, 1_763_690_000.5)
    stamps = [json.loads(text)["ts"][17:] for text in written(*(call(time_s=t) for t in times)).splitlines()]
    assert stamps == ["20.000Z", "20.999Z", "21.000Z", "20.500Z"]


def test_the_end_names_fault_and_phase() -> None:
    assert line(ended_by=Fault.BACKEND, phase=Phase.BODY)["end"] == "SD"
    assert line(ended_by=Fault.CLIENT, phase=Phase.HEAD)["end"] == "CH"


def test_overhead_is_what_backends_did_not_need_and_null_if_none_was_asked() -> None:
    assert line(is_stream=True)["overhead_ms"] == 0.5
    assert line(upstream_s=0.0, attempts=1)["overhead_ms"] == 12.5
    assert line(attempts=0)["overhead_ms"] is None


def test_a_line_names_the_request_who_asked_and_its_trace() -> None:
    trace = Trace(0xABC, 0, "", None, lambda bits: 1)
    value = line(request_id="r-1", principal="p" * 32, trace=trace, ttfb_s=0.001)
    assert (value["request_id"], value["principal"], value["trace"]) == ("r-1", "p" * 32, f"{0xABC:032x}")
    assert value["ttfb_ms"] == 1.0


def test_without_a_status_there_was_no_first_byte() -> None:
    assert line(status=0)["ttfb_ms"] is None


def test_records_that_cannot_be_written_are_not_tried_again(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log")
    log.record(call(time_s=float("nan")))
    with pytest.raises(ValueError, match="NaN"):
        log.tick(0.0)

    log.record(CALL)
    log.tick(0.0)
    log.close()

    assert len(lines(tmp_path / "log")) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("get_forecast", "get_forecast"),
        ("C# review", "C# review"),
        ("https://user:secret@files.example/a@b?token=secret#secret", "https://files.example/a@b"),
        ("https://files.example/a#secret", "https://files.example/a"),
        ("https:user:secret@files.example/a", "https:files.example/a"),
        ("https:///user:secret@files.example", "https:///files.example"),
        ("//user:secret@files.example/a", "//user:files.example/a"),
        ("/doc?token=secret", "/doc"),
        ("file:///var/data/report.txt", "file:///var/data/report.txt"),
        ("urn:isbn:0451450523?+secret", "urn:isbn:0451450523"),
        ("https://" + "s" * 999 + "@files.example/", "https://files.example/"),
    ],
)
def test_a_uri_loses_query_fragment_and_userinfo(name: str, shown: str) -> None:
    assert line(name=name)["name"] == shown


def test_long_texts_of_a_client_are_cut() -> None:
    value = line(name="n" * 10_000, method="m" * 10_000)
    assert (len(value["name"]), len(value["method"])) == (TEXT_LIMIT, TEXT_LIMIT)
    assert len(line(name="u:" + "n" * 10_000)["name"]) == TEXT_LIMIT


hostile = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    [
        *("\x1b[2J", "\x9b31m", "\x7f", "\r\n{}", "\0", '","status":500,"x":"', "\\"),
        *("\u202e", "\u2028", "\ufeff", "\ud800"),
    ]
)


@given(name=hostile, method=hostile, peer=hostile)
def test_no_name_can_break_a_line_or_act_on_a_terminal(name: str, method: str, peer: str) -> None:
    content = written(call(name=name, method=method, peer=peer), CALL)
    first, second, nothing = content.decode().split("\n")
    assert nothing == ""
    unseen = {"Cc", "Zl", "Zp"}
    assert not [c for c in first if unicodedata.category(c) in unseen or c in "\u202e\u2066\ufeff"]
    value = json.loads(first)
    assert value["status"] == 200
    if not any(0xD800 <= ord(c) < 0xE000 for c in name + method + peer):
        assert value["method"] == method[:TEXT_LIMIT]
        assert value["peer"] == peer
    assert json.loads(second)["name"] == "get_forecast"


def test_lines_wait_for_the_tick(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log")
    sink: Sink = log
    sink.record(CALL)
    assert lines(tmp_path / "access.log") == []
    log.tick(0.0)
    assert len(lines(tmp_path / "access.log")) == 1
    log.tick(0.0)
    log.close()
    assert len(lines(tmp_path / "access.log")) == 1


def test_a_full_buffer_does_not_wait_for_the_tick(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log")
    for _ in range(FLUSH_BYTES // len(written(CALL)) + 1 + BATCH):
        log.record(CALL)
    assert (tmp_path / "access.log").stat().st_size > FLUSH_BYTES
    log.close()


def test_an_existing_file_is_appended_to_and_a_new_one_is_not_for_everybody(tmp_path: Path) -> None:
    for _ in range(2):
        log = AccessLog(tmp_path / "access.log")
        log.record(CALL)
        log.close()
    assert len(lines(tmp_path / "access.log")) == 2
    assert (tmp_path / "access.log").stat().st_mode & 0o007 == 0


def test_reopen_goes_on_in_a_new_file_of_the_old_name(tmp_path: Path) -> None:
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    log = AccessLog(path)
    log.record(call(name="before"))
    path.rename(rotated)
    log.reopen()
    log.record(call(name="after"))
    log.close()
    assert [value["name"] for value in lines(rotated)] == ["before"]
    assert [value["name"] for value in lines(path)] == ["after"]


def test_a_reopen_that_fails_keeps_the_old_file_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, away = tmp_path / "logs" / "access.log", tmp_path / "away"
    path.parent.mkdir()
    log = AccessLog(path)
    path.parent.rename(away)
    log.reopen()
    assert f"access log {path}: cannot be opened anew: No such file" in caplog.text
    log.record(CALL)
    log.close()
    assert len(lines(away / "access.log")) == 1
    assert log.dropped == 0


def test_a_file_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        AccessLog(tmp_path / "missing" / "access.log")


def test_a_fifo_without_a_reader_stops_the_start_instead_of_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StartupError):
        AccessLog(tmp_path / "fifo")


def test_a_reader_that_stalls_costs_lines_but_never_a_wait_and_never_half_a_line(pipe: Pipe) -> None:
    log = AccessLog(pipe.writer)
    total = BUFFER_LIMIT_BYTES // len(written(CALL)) + 500
    for number in range(total):
        log.record(call(bytes_in=number))
        if number % 100 == 0:
            log.tick(0.0)
    assert log.dropped > 0
    assert os.get_blocking(pipe.writer), "an inherited descriptor keeps its flags"
    while pipe.read():
        log.tick(0.0)
    values = [json.loads(text) for text in pipe.content.splitlines()]
    assert [value["bytes_in"] for value in values] == list(range(len(values)))
    assert len(values) + log.dropped == total
    log.record(CALL)
    log.close()
    assert pipe.read() == len(written(CALL)), "room again, lines again"


def test_two_workers_on_one_pipe_do_not_mix_their_lines(pipe: Pipe) -> None:
    logs = [AccessLog(pipe.writer), AccessLog(pipe.writer)]
    for number in range(400):
        for worker, log in enumerate(logs):
            log.record(call(attempts=worker, bytes_in=number))
    for log in logs:
        log.tick(0.0)
    while pipe.read():
        for log in logs:
            log.tick(0.0)
    values = [json.loads(text) for text in pipe.content.splitlines()]
    assert len(values) == 800
    for worker in (0, 1):
        assert [v["bytes_in"] for v in values if v["attempts"] == worker] == list(range(400))


def test_a_reader_that_goes_away_costs_the_lines_it_did_not_take(pipe: Pipe) -> None:
    log = AccessLog(pipe.writer)
    pipe.close_reader()
    log.record(CALL)
    log.record(CALL)
    log.tick(0.0)
    assert log.dropped == 2
    log.close()
    assert log.dropped == 2


def test_a_full_disk_keeps_the_lines_until_there_is_room() -> None:
    with tempfile.TemporaryFile() as file:
        # /dev/full answers every write with ENOSPC.
        fd = os.open("/dev/full", os.O_WRONLY)
        log = AccessLog(fd)
        log.record(CALL)
        log.tick(0.0)
        assert log.dropped == 0
        os.dup2(file.fileno(), fd)
        log.close()
        os.close(fd)
        assert file.seek(0, os.SEEK_END) == len(written(CALL))


def test_half_a_line_is_not_continued_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BUF)
    log = AccessLog(path)
    log.record(call(peer="p" * 2 * PIPE_BUF))
    log.record(call(name="whole"))
    log.tick(0.0)
    assert len(os.read(reader, 1 << 20)) == PIPE_BUF
    # Filled again by a stranger, so that the rest of the line cannot leave before the rotation.
    stranger = os.open(path, os.O_WRONLY)
    os.write(stranger, b"x" * PIPE_BUF)
    path.rename(tmp_path / "rotated")
    log.reopen()
    log.close()
    os.close(stranger)
    os.close(reader)
    assert [value["name"] for value in lines(path)] == ["whole"]
    assert log.dropped == 1


def test_close_gives_up_on_a_stalled_reader_and_is_idempotent(pipe: Pipe) -> None:
    log = AccessLog(pipe.writer)
    for _ in range(50):
        log.record(CALL)
    log.close()
    pipe.read()
    taken = pipe.content.count(b"\n")
    assert taken > 0
    assert log.dropped == 50 - taken
    log.close()
    log.reopen()
    log.record(CALL)
    log.tick(0.0)
    assert log.dropped == 51 - taken
    assert os.fstat(pipe.writer), "an inherited descriptor stays open"
