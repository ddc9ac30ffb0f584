"""Runs generators: starts them, tells them when, hears what they say, and adds up what they found.

Rules of this file: nothing of locust or gevent is here; a generator is a process (``python -m
mcp_proxy.load``) that speaks in lines. Whatever happens here, generators end: their standard input closes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

import msgspec

from mcp_proxy.load import LoadError, Plan, mix, shapes
from mcp_proxy.load.ledger import Ledger

READY_S: Final = 60.0
"""How long the imports of a generator may take."""
QUIET_S: Final = 60.0
"""A generator says something every second, and at the end when the last request has; without a word for so
much longer than a request may take it has hung."""
_LAST_WORDS_BYTES: Final = 4000
_POLL_S: Final = 0.1
GRACE_S: float = 5.0
"""Between SIGTERM and SIGKILL for a command that is not waited for any more."""
_SEED_STEP: Final = 1000
"""So far are the seeds of two processes apart: their users do not do the same."""

NEEDED: Final = ("locust", "gevent")
INSTALL: Final = "pip install 'mcp-reverse-proxy[load]'"


class Tick(msgspec.Struct):
    """What a generator says every second; of several, all together."""

    at_s: float = 0.0
    users: int = 0
    answers: int = 0
    failures: int = 0
    waits: int = 0


class During(msgspec.Struct):
    """A command that ran while the load was steady, and how it ended."""

    command: str
    exit_code: int | None = None
    """None: it never ran, or had not ended."""
    seconds: float = 0.0
    output: str = ""
    """The end of what it printed."""
    has_begun: bool = False


class Outcome(msgspec.Struct):
    """Of one run of all generators."""

    ledger: Ledger
    during: During | None = None
    was_stopped: bool = False
    """By Ctrl-C; what there is, is reported."""


Heard = queue.Queue[tuple[int, dict[str, Any] | None]]
"""Number of a generator and what it said; None: its output has ended."""

OnTick = Callable[[Tick], None]


def check_installed() -> None:
    """Raises LoadError if there is no locust, without importing it."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        raise LoadError(f"locust is not installed: {INSTALL}")


class GeneratorDied(LoadError):
    """In the middle of it."""


def conduct(plan: Plan, processes: int, on_tick: OnTick, during: str | None = None) -> Outcome:
    """Make the load with so many processes. Raises LoadError if a generator cannot begin, GeneratorDied
    if one ends before it has said what it found."""
    plan = msgspec.structs.replace(plan, holds_on=during is not None)
    with contextlib.ExitStack() as stack:
        heard: Heard = queue.Queue()
        generators = [stack.enter_context(_generator(number, heard)) for number in range(processes)]
        return _Run(plan, generators, heard, on_tick, during).run()


def self_test() -> None:
    """Prove that a generator sees events when they come. Raises LoadError if it does not."""
    check_installed()
    heard: Heard = queue.Queue()
    with _generator(0, heard, "--self-test"):
        problem = heard.get(timeout=READY_S)[1]
    if problem is None or problem["problem"] is not None:
        why = "it did not start" if problem is None else problem["problem"]
        raise LoadError(f"the generator does not see events when they come: {why}")


def share_of(plan: Plan, number: int, processes: int) -> Plan:
    """What process ``number`` (from 0) of so many does of a plan."""
    counts = None
    users = shapes.share_of(plan.users, number, processes)
    if shapes.is_constant(plan.shape):
        counts = mix.share(mix.users_of(plan.mix, plan.users), number, processes)
        users = sum(counts.values())
    return msgspec.structs.replace(
        plan,
        users=users,
        counts=counts,
        seed=plan.seed + number * _SEED_STEP,
        locust_html=plan.locust_html if processes == 1 else None,
    )


class _Generator:
    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()

    def last_words(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        start = max(0, size - _LAST_WORDS_BYTES)
        words = os.pread(self._errors.fileno(), _LAST_WORDS_BYTES, start)
        return words.decode(errors="replace").strip() or "it said nothing"


@contextlib.contextmanager
def _generator(number: int, heard: Heard, *arguments: str) -> Iterator[_Generator]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "mcp_proxy.load", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            process_group=0,  # Ctrl-C is for the command, which then stops its generators in order
        )

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(msgspec.DecodeError):
                    heard.put((number, msgspec.json.decode(line)))
            heard.put((number, None))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield _Generator(process, errors)
        finally:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            thread.join(5.0)
            if process.stdout is not None:
                process.stdout.close()


class _Run:
    """One run, from the first word of a generator to the last."""

    def __init__(
        self,
        plan: Plan,
        generators: list[_Generator],
        heard: Heard,
        on_tick: OnTick,
        during: str | None,
    ) -> None:
        self._plan = plan
        self._generators = generators
        self._heard = heard
        self._on_tick = on_tick
        self._ticks = [Tick() for _ in generators]
        self._results: dict[int, Ledger] = {}
        self._command = None if during is None else _Command(during)
        self._was_stopped = False

    def run(self) -> Outcome:
        try:
            self._begin()
            while len(self._results) < len(self._generators):
                try:
                    self._hear()
                except KeyboardInterrupt:
                    if self._was_stopped:
                        raise
                    self._stop()
            during = None if self._command is None else self._command.finish()
        finally:
            if self._command is not None:
                self._command.kill()
        ledger = Ledger()
        for result in self._results.values():
            ledger.add(result)
        return Outcome(ledger, during, self._was_stopped)

    def _begin(self) -> None:
        """All begin together, when the slowest is ready."""
        ready: set[int] = set()
        while len(ready) < len(self._generators):
            number, said = self._next(READY_S)
            if said is not None and said.get("event") == "ready":
                if said["problem"] is not None:
                    raise LoadError(f"the generator does not see events when they come: {said['problem']}")
                ready.add(number)
        for number, generator in enumerate(self._generators):
            generator.tell(msgspec.json.encode(share_of(self._plan, number, len(self._generators))))

    def _hear(self) -> None:
        if self._command is not None and self._command.is_over:
            self._tell_all(b"release")
        number, said = self._next(QUIET_S + self._plan.timeout_s)
        if said is None:
            return
        if said["event"] == "steady" and self._command is not None:
            self._command.start()
        elif said["event"] == "result":
            self._results[number] = msgspec.convert(said["ledger"], Ledger, strict=False)
        elif said["event"] == "tick":
            self._ticks[number] = msgspec.convert(said, Tick)
            if number == 0:
                self._on_tick(self._all_ticks())

    def _all_ticks(self) -> Tick:
        ticks = self._ticks
        return Tick(
            max(tick.at_s for tick in ticks),
            sum(tick.users for tick in ticks),
            sum(tick.answers for tick in ticks),
            sum(tick.failures for tick in ticks),
            sum(tick.waits for tick in ticks),
        )

    def _next(self, patience_s: float) -> tuple[int, dict[str, Any] | None]:
        """What is said next. A generator that ends without its result, or hangs, ends the run."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            try:
                number, said = self._heard.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if said is None and number not in self._results:
                raise GeneratorDied(f"the load generator ended: {self._generators[number].last_words()}")
            return number, said
        raise GeneratorDied(f"the load generator said nothing for {patience_s:.0f} s")

    def _stop(self) -> None:
        self._was_stopped = True
        self._tell_all(b"stop")

    def _tell_all(self, line: bytes) -> None:
        for generator in self._generators:
            generator.tell(line)


class _Command:
    """``--during``: started once, in a process group of its own."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        self._began = 0.0
        self._seconds = 0.0

    def start(self) -> None:
        if self._process is None:
            self._began = time.monotonic()
            self._process = subprocess.Popen(
                self._text,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                process_group=0,
            )

    @property
    def is_over(self) -> bool:
        if self._process is None or self._process.poll() is None:
            return False
        self._seconds = self._seconds or time.monotonic() - self._began
        return True

    def finish(self) -> During:
        code = self._process.returncode if self._process is not None and self.is_over else None
        has_begun = self._process is not None
        seconds = self._seconds or (time.monotonic() - self._began if has_begun else 0.0)
        size = os.fstat(self._output.fileno()).st_size
        end = os.pread(self._output.fileno(), _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES))
        return During(self._text, code, seconds, end.decode(errors="replace").strip(), has_begun)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            _end_group(self._process)
        self._output.close()


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for whoever of the group is still there after a while."""
    until = time.monotonic() + GRACE_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        while time.monotonic() < until:
            leader.poll()  # a zombie would count as one of the group
            os.killpg(leader.pid, 0)
            time.sleep(_POLL_S)
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
