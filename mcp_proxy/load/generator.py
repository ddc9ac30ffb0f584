"""The process that makes the load: a plan in, progress out, a ledger at the end.

Rules of this file: locust runs the users (spawning, weights, stopping) and nothing else of it is used: no web
page, no argument parser, no exit codes. Its parent talks to it by lines: first the plan as JSON; then
``release``, after which a plan that holds on may end, and ``stop``; the end of input means ``stop``. Lines to
the parent are JSON objects with an ``event``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import gevent
import msgspec
from gevent.fileobject import FileObjectPosix
from locust import User
from locust.env import Environment
from locust.html import get_html_report
from locust.runners import LocalRunner
from locust.shape import LoadTestShape
from locust.stats import stats_history

from mcp_proxy.load import Plan
from mcp_proxy.load.ledger import Ledger, bucket
from mcp_proxy.load.locustfile import USERS, Run, begin
from mcp_proxy.load.selftest import self_test
from mcp_proxy.load.shapes import SPAWN_PER_S, is_steady, users_at

STOP_S: Final = 5.0
"""How much longer than a request users may take when the load ends: what hangs then is counted, too."""
LAG_EVERY_S: Final = 0.05
LONGEST_HOLD_S: Final = 3600.0
"""A plan that holds on ends after this, released or not."""


class PlanShape(LoadTestShape):
    """The shape of the plan, as locust asks for it every second."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.reset_time()
        self.is_released = not plan.holds_on
        self.is_stopped = False

    def reset_time(self) -> None:
        self._began = time.perf_counter()

    @property
    def at_s(self) -> float:
        return time.perf_counter() - self._began

    @property
    def is_over(self) -> bool:
        at_s = self.at_s
        if self.is_stopped or at_s >= self._plan.time_s + LONGEST_HOLD_S:
            return True
        return at_s >= self._plan.time_s and self.is_released

    @property
    def is_steady(self) -> bool:
        plan = self._plan
        return is_steady(plan.shape, min(self.at_s, plan.time_s), plan.time_s)

    def tick(self) -> tuple[int, float] | None:
        if self.is_over:
            return None
        plan = self._plan
        return users_at(plan.shape, plan.users, self.at_s, plan.time_s), SPAWN_PER_S


class Generator:
    """One run."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._shape = PlanShape(plan)
        classes: list[type[User]] = []
        for kind, weight in plan.mix.items():
            USERS[kind].weight = weight
            USERS[kind].fixed_count = 0 if plan.counts is None else plan.counts.get(kind, 0)
            if plan.counts is None or kind in plan.counts:
                classes.append(USERS[kind])
        self._environment = Environment(
            user_classes=classes,
            shape_class=self._shape,
            host=plan.target.url,
            stop_timeout=plan.timeout_s + STOP_S,
        )
        self._run: Run = begin(self._environment, plan)
        self._runner: LocalRunner = self._environment.create_local_runner()

    @property
    def ledger(self) -> Ledger:
        return self._run.ledger

    def run(self) -> None:
        """Until the shape is over and the users have gone."""
        plan, runner, ledger = self._plan, self._runner, self.ledger
        helpers = [gevent.spawn(self._listen_to_parent), gevent.spawn(self._watch_lag)]
        if plan.locust_html is not None:
            helpers.append(gevent.spawn(stats_history, runner))
        began, cpu = time.perf_counter(), time.process_time()
        ledger.begun, ledger.warm_up_s = began, plan.warm_up_s
        runner.start_shape()
        self._follow()
        runner.quit()
        ledger.wall_s, ledger.cpu_s = time.perf_counter() - began, time.process_time() - cpu
        ledger.processes = 1
        gevent.killall(helpers)
        if plan.locust_html is not None:
            Path(plan.locust_html).write_text(get_html_report(self._environment, show_download_link=False))

    def _follow(self) -> None:
        """While users are at work: a line a second, and what the generator itself costs."""
        ledger, was_steady = self.ledger, False
        while self._runner.shape_greenlet is not None:
            cpu, at = time.process_time(), time.perf_counter()
            gevent.sleep(min(1.0, max(0.05, self._plan.time_s - self._shape.at_s)))
            ledger.users_are(self._runner.user_count)
            if self._shape.is_steady:
                ledger.steady_cpu_s += time.process_time() - cpu
                ledger.steady_s += time.perf_counter() - at
                if not was_steady:
                    was_steady = True
                    say("steady")
            say(
                "tick",
                at_s=round(self._shape.at_s, 1),
                users=self._runner.user_count,
                answers=ledger.answers,
                failures=ledger.total_failures,
                waits=ledger.waits,
            )

    def _listen_to_parent(self) -> None:
        lines = FileObjectPosix(sys.stdin.fileno(), "rb", close=False)
        while line := lines.readline():
            if line.strip() == b"release":
                self._shape.is_released = True
            elif line.strip() == b"stop":
                break
        self._shape.is_stopped = True

    def _watch_lag(self) -> None:
        """A generator that comes too late itself measures itself."""
        while True:
            due = time.perf_counter() + LAG_EVERY_S
            gevent.sleep(LAG_EVERY_S)
            key = bucket(max(0.0, time.perf_counter() - due))
            self.ledger.lag[key] = self.ledger.lag.get(key, 0) + 1


def say(event: str, **values: Any) -> None:
    """One line to the parent."""
    sys.stdout.buffer.write(msgspec.json.encode({"event": event, **values}) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Test the own eyes, read the plan, make the load, say the ledger."""
    problem = self_test()
    say("ready", problem=problem)
    if problem is not None or "--self-test" in sys.argv[1:]:
        return
    plan = msgspec.json.decode(_line(), type=Plan)
    generator = Generator(plan)
    generator.run()
    say("result", ledger=generator.ledger)


def _line() -> bytes:
    """Byte by byte: nothing of the next line may stay in a buffer that only this function knows."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            raise SystemExit(2)
        line += byte
    return line
