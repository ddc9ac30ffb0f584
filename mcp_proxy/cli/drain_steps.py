"""What ``mcp-proxy drain`` does at each replica, and how it waits.

Rules of this file: a replica that fails keeps its error and is left out of what follows. Progress goes to
standard error: a bar on a terminal, else a line whenever something has changed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec

from mcp_proxy.cli import backend_client
from mcp_proxy.cli.admin_client import Admin, AdminError, NotThere, Silent
from mcp_proxy.cli.backend_client import Ambiguous, Backend
from mcp_proxy.cli.backend_table import span
from mcp_proxy.cli.text import plain

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_LOOK_S: Final = 0.5


class _Load(msgspec.Struct):
    streams: int
    inflight: int
    sessions: int


class _Pool(msgspec.Struct):
    backends: list[_Load]


class _Status(msgspec.Struct):
    pools: dict[str, _Pool]


class _Draining(msgspec.Struct):
    draining: bool


class Left(NamedTuple):
    """What is not finished yet."""

    sessions: int
    streams: int
    inflight: int
    seconds: float | None = None
    """Until the rest is ended; None when not known."""

    @property
    def total(self) -> int:
        return self.sessions + self.streams + self.inflight

    def __str__(self) -> str:
        text = f"sessions {self.sessions}, streams {self.streams}, in flight {self.inflight}"
        return text if self.seconds is None else f"{text}; {span(self.seconds)} left"


class Replica:
    """One proxy of those that are asked."""

    def __init__(self, admin: Admin) -> None:
        self.admin = admin
        self.base = admin.base
        self.error: str | None = None
        self.told: list[str] = []
        """What is said in the end, in words."""
        self.backends: list[Backend] = []
        self.is_over = False
        self.id = ""

    @property
    def document(self) -> dict[str, Any]:
        return {"admin": self.base, "backends": self.backends, "error": self.error}

    @contextmanager
    def trying(self) -> Iterator[None]:
        try:
            yield
        except Ambiguous:
            raise
        except AdminError as error:
            self.error = error.message


def _sound(replicas: Iterable[Replica]) -> list[Replica]:
    return [replica for replica in replicas if replica.error is None]


# --- a backend ---------------------------------------------------------------------------------------


def drain_backend(
    replicas: list[Replica], text: str, pool: str | None, *, for_: str | None, is_cancelled: bool, wait: bool
) -> None:
    """Raises Ambiguous before anything is done."""
    for replica in replicas:
        with replica.trying():
            replica.id = backend_client.find(replica.admin, text, pool)
    ids = sorted({replica.id for replica in _sound(replicas)})
    if len(ids) > 1:
        raise Ambiguous(f"{text!r} means another backend at every replica: {plain(', '.join(ids))}.")
    for replica in _sound(replicas):
        with replica.trying():
            if is_cancelled:
                replica.backends = backend_client.undrain(replica.admin, replica.id, pool)
            else:
                replica.backends = backend_client.drain(replica.admin, replica.id, pool, for_)
            replica.told = [_told(backend) for backend in replica.backends]
    if wait:
        _wait(_sound(replicas), lambda replica: _look(replica, pool))


def _told(backend: Backend) -> str:
    name = f"{plain(backend.id)} in {plain(backend.pool)}"
    return f"{name} stays" if backend.drain is None else f"{name} is draining: {_left([backend])}"


def _look(replica: Replica, pool: str | None) -> Left:
    try:
        replica.backends = backend_client.show(replica.admin, replica.id, pool)
    except NotThere:  # it has left, as what discovery drains does
        replica.backends = []
    left = _left(replica.backends)
    is_stopped = any(backend.drain is None for backend in replica.backends)
    if is_stopped:
        replica.told = []
        raise AdminError(f"{replica.base}: the drain was taken back, with {left} on {plain(replica.id)}.")
    is_due = left.seconds == 0 and not left.streams and not left.inflight
    if not left.total or is_due:
        replica.is_over = True
        rest = f"; sessions left: {left.sessions}, they end or move as the pool is configured"
        replica.told = [f"{plain(replica.id)} is drained{rest if left.sessions else ''}"]
        return Left(0, 0, 0)
    return left


def _left(backends: list[Backend]) -> Left:
    return Left(
        sum(backend.sessions for backend in backends),
        sum(backend.streams for backend in backends),
        sum(backend.inflight for backend in backends),
        max((backend.drain.left_s for backend in backends if backend.drain is not None), default=None),
    )


# --- the proxy ---------------------------------------------------------------------------------------


def drain_proxy(replicas: list[Replica], *, wait: bool) -> None:
    for replica in replicas:
        with replica.trying():
            replica.admin.ask(_Draining, "POST", "/drain")
            replica.told = ["the proxy is draining"]
    if wait:
        _wait(_sound(replicas), _look_at_proxy)


def _look_at_proxy(replica: Replica) -> Left:
    """Its admin listener is the last to go."""
    try:
        status = replica.admin.ask(_Status, "GET", "/status.json")
    except Silent:
        replica.is_over = True
        replica.told = ["the proxy has ended"]
        return Left(0, 0, 0)
    loads = [load for pool in status.pools.values() for load in pool.backends]
    # Sessions are not waited for: those in a registry live on, and the others are over with the proxy.
    return Left(0, sum(load.streams for load in loads), sum(load.inflight for load in loads))


# --- waiting -----------------------------------------------------------------------------------------


def _wait(replicas: list[Replica], look: Callable[[Replica], Left]) -> None:
    """Until every one is over or has failed. Raises AdminError on Ctrl-C: whoever goes on behind this command
    must not take it for the end."""
    try:
        with _progress() as show:
            while not _is_over(replicas, look, show):
                time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        raise AdminError("not waited for, and the drain goes on.") from None


def _is_over(replicas: list[Replica], look: Callable[[Replica], Left], show: Callable[[Left], None]) -> bool:
    left: list[Left] = []
    for replica in _sound(replicas):
        if not replica.is_over:
            with replica.trying():
                left.append(look(replica))
    show(_total(left))
    return all(replica.is_over for replica in _sound(replicas))


def _total(left: list[Left]) -> Left:
    seconds = [each.seconds for each in left if each.seconds is not None]
    return Left(
        sum(each.sessions for each in left),
        sum(each.streams for each in left),
        sum(each.inflight for each in left),
        max(seconds) if seconds else None,
    )


@contextmanager
def _progress() -> Iterator[Callable[[Left], None]]:
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
        return
    last = None

    def line(left: Left) -> None:
        nonlocal last
        if left.total and left[:3] != last:
            last = left[:3]
            click.echo(str(left), err=True)

    yield line


def _shown(left: Left | None) -> str:
    return "" if left is None else str(left)


@contextmanager
def _bar() -> Iterator[Callable[[Left], None]]:
    most = 0
    bar: ProgressBar[Left | None]
    with click.progressbar(
        length=1, label="draining", file=sys.stderr, show_eta=False, item_show_func=_shown
    ) as bar:

        def show(left: Left) -> None:
            nonlocal most
            most = max(most, left.total)
            bar.length = most or 1
            # Not ``update``: more may be left than before, and then a bar goes back.
            bar.pos = bar.length - left.total
            bar.current_item = left if left.total else None
            bar.render_progress()

        yield show
