"""Backups of sessions in files and pipes.

Rules of this file: a backup appears under its name when it is whole, or not at all; nobody else may
read it. A file is read to its end before anything is restored from it. What is told while it runs
goes to a terminal only.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import click

from mcp_proxy.admin.backup import CONTENT_TYPE, InvalidBackup, Reader
from mcp_proxy.cli.admin_client import Admin, AdminError
from mcp_proxy.cli.session_client import Restored, restore

_PIECE: Final = 64 * 1024


def save(admin: Admin, file: str) -> int:
    """Write a backup to ``file``, ``-`` for standard output; the number of sessions."""
    reader = Reader()
    with admin.stream("/sessions/export", CONTENT_TYPE) as pieces, _target(file) as out:
        try:
            for piece in _told(pieces, reader):
                out.write(piece)
            reader.finish()
            out.flush()
        except InvalidBackup as error:
            raise AdminError(f"the export is not whole: {error}.") from None
    return reader.count


def load(admin: Admin, file: str) -> Restored:
    """Restore the backup in ``file``, ``-`` for standard input."""
    with _source(file) as source:
        try:
            if _can_be_read_twice(source):
                _check(source)
        except InvalidBackup as error:
            raise AdminError(f"{error}. Nothing was restored.") from None
        return restore(admin, _sent(source))


def _can_be_read_twice(source: IO[bytes]) -> bool:
    try:
        return stat.S_ISREG(os.fstat(source.fileno()).st_mode)
    except OSError:  # not a descriptor at all
        return False


def _check(source: IO[bytes]) -> None:
    at = source.tell()
    reader = Reader()
    for piece in _pieces(source):
        reader.feed(piece)
    reader.finish()
    source.seek(at)


def _pieces(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(_PIECE):
        yield piece


def _sent(source: IO[bytes]) -> Iterator[bytes]:
    lines = 0
    with _progress() as tell:
        for piece in _pieces(source):
            lines += piece.count(b"\n")
            tell(f"{max(0, lines - 1):,} sessions sent")
            yield piece


def _told(pieces: Iterable[bytes], reader: Reader) -> Iterator[bytes]:
    with _progress() as tell:
        for piece in pieces:
            reader.feed(piece)
            tell(f"{reader.count:,} sessions")
            yield piece


class _Teller:
    """One line of a terminal, written over and over."""

    def __init__(self) -> None:
        self._is_on = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self._is_on:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)


@contextlib.contextmanager
def _progress() -> Iterator[_Teller]:
    tell = _Teller()
    try:
        yield tell
    finally:
        tell("")


@contextlib.contextmanager
def _source(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = open(file, "rb")  # noqa: SIM115
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None
    with source:
        yield source


@contextlib.contextmanager
def _target(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdout.buffer
        return
    path = Path(os.path.realpath(file))
    try:
        if path.exists() and not path.is_file():  # a pipe or a device must not be replaced by a file
            with path.open("wb") as out:
                yield out
            return
        with _replacing(path) as out:
            yield out
    except OSError as error:
        raise AdminError(f"cannot write {file}: {error.strerror or error}.") from None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, with mode 0600 from the start, that takes the name of ``path`` when it is whole."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
