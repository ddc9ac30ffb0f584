"""One ``mcp-proxy load``: who is loaded, in which order, and what came of it.

Rules of this file: endpoints that are compared get the same plan with the same seed, in turns and in short
rounds, forwards and backwards: what the machine does meanwhile happens to all of them. Everything that is
started here has ended when ``run`` returns.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from typing import Any, Final

import msgspec

from mcp_proxy import __version__
from mcp_proxy.config.amounts import format_duration
from mcp_proxy.load import Facts, LoadError, Plan, Target, Tool, mix, summary
from mcp_proxy.load.alike import alike
from mcp_proxy.load.conduct import During, Outcome, Tick, check_installed, conduct
from mcp_proxy.load.endpoints import STARTED, endpoint, stub
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.probe import TIMEOUT_S, probe
from mcp_proxy.load.shapes import SHAPES
from mcp_proxy.load.summary import Summary
from mcp_proxy.load.thresholds import Thresholds, Verdict, judge

DIRECT: Final = "direct"
SHORTEST_ROUND_S: Final = 2.0
WARM_UP_S: Final = 1.0
WARM_UP_SHARE: Final = 0.1
"""Of the time, and at most so long: the users arrive, and all of them connect."""


class Order(msgspec.Struct):
    """What the command line asks for."""

    target: Target | None
    """None: the bundled server."""
    shape: str = "smoke"
    time_s: float = 15.0
    users: int = 13
    mix: dict[str, float] = msgspec.field(default_factory=lambda: dict(mix.DEFAULT))
    pace: float | None = 10.0
    headers: list[tuple[str, str]] = []
    tool: Tool | None = None
    read_only: bool = False
    """No tool is called that does not say that it only reads."""
    thresholds: Thresholds = Thresholds()
    during: str | None = None
    compare: list[tuple[str, Target | None]] = []
    """Names, with the address of those that exist already; the first is what others are compared with."""
    rounds: int = 3
    processes: int = 1
    seed: int = 1
    timeout_s: float = 30.0
    verify: bool = True
    locust_html: str | None = None


class Said(msgspec.Struct):
    """What the terminal may show meanwhile."""

    line: str | None = None
    tick: Tick | None = None
    title: str = ""
    time_s: float = 0.0


Tell = Callable[[Said], None]


def run(order: Order, tell: Tell) -> Summary:
    """All of it. Raises LoadError if it cannot start."""
    check_installed()
    began = datetime.datetime.now(datetime.UTC)
    with contextlib.ExitStack() as stack:
        campaign = _Campaign(order, tell, stack)
        campaign.prepare()
        campaign.load()
    return campaign.summary(began)


class _Campaign:
    def __init__(self, order: Order, tell: Tell, stack: contextlib.ExitStack) -> None:
        self._order = order
        self._tell = tell
        self._stack = stack
        self._plans: dict[str, Plan] = {}
        self._rounds: dict[str, list[Ledger]] = {}
        self._notes: list[str] = []
        self._during: During | None = None
        self._was_stopped = False

    # --- before --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Start what has to be started, and look at all of it."""
        order = self._order
        direct = order.target or self._stack.enter_context(stub())
        if order.target is None:
            self._say(f"the target is the bundled server, {direct.url}")
        targets: dict[str, Target] = {}
        found: list[Facts] = []
        for name, where in order.compare or [(DIRECT, direct)]:
            targets[name] = where or self._stack.enter_context(endpoint(name, direct))
            found.append(self._look(name, targets[name]))
        common, left_out = alike(found)
        if left_out:
            self._say(f"not served alike by all, so left out: {', '.join(left_out)}")
        for (name, at), facts in zip(targets.items(), common, strict=True):
            self._plans[name] = self._plan(name, at, facts)
            self._rounds[name] = []

    def _look(self, name: str, where: Target) -> Facts:
        order = self._order
        facts = probe(
            *(where, order.headers),
            tool=order.tool,
            verify=order.verify,
            timeout_s=min(order.timeout_s, TIMEOUT_S),
            with_abuses="abuse" in order.mix,
            read_only=order.read_only,
        )
        prefix = f"{name}: " if order.compare else ""
        self._say(f"{prefix}{where.url} speaks {_speaks(facts)}")
        for note in facts.notes:
            self._say(f"{prefix}{note}")
        return facts

    def _plan(self, name: str, where: Target, facts: Facts) -> Plan:
        order = self._order
        served = {kind: weight for kind, weight in order.mix.items() if facts.serves(kind)}
        if not served:
            asked = mix.written(order.mix)
            raise LoadError(f"{where.url} serves none of the users that were asked for: {asked}")
        if order.users < len(served):
            prefix = f"{name}: " if order.compare else ""
            self._say(f"{prefix}{len(served)} users instead of {order.users}: one of every kind")
        return Plan(
            target=where,
            shape=order.shape,
            time_s=order.time_s / (order.rounds if order.compare else 1),
            users=max(order.users, len(served)),
            mix=served,
            facts=facts,
            headers=order.headers,
            pace=order.pace,
            seed=order.seed,
            warm_up_s=min(WARM_UP_S, order.time_s * WARM_UP_SHARE),
            timeout_s=order.timeout_s,
            verify=order.verify,
            locust_html=None if order.compare else order.locust_html,
        )

    def _say(self, line: str) -> None:
        self._notes.append(line)
        self._tell(Said(line))

    # --- meanwhile -----------------------------------------------------------------------------

    def load(self) -> None:
        order = self._order
        rounds = order.rounds if order.compare else 1
        names = list(self._plans)
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                title = f"round {number + 1} of {rounds}, {name}" if order.compare else ""
                outcome = self._once(self._plans[name], title)
                self._rounds[name].append(outcome.ledger)
                if outcome.was_stopped:
                    self._was_stopped = True
                    return

    def _once(self, plan: Plan, title: str) -> Outcome:
        def on_tick(tick: Tick) -> None:
            self._tell(Said(tick=tick, title=title, time_s=plan.time_s))

        outcome = conduct(plan, self._order.processes, on_tick, self._order.during)
        self._during = outcome.during or self._during
        return outcome

    # --- afterwards ----------------------------------------------------------------------------

    def summary(self, began: datetime.datetime) -> Summary:
        order = self._order
        ledgers = {name: _whole(rounds) for name, rounds in self._rounds.items()}
        verdicts = []
        for name, ledger in ledgers.items():
            for verdict in judge(order.thresholds, ledger):
                of = f"{verdict.name} ({name})" if order.compare else verdict.name
                verdicts.append(msgspec.structs.replace(verdict, name=of))
        verdicts += _judged(self._during)
        is_kept = all(verdict.is_kept for verdict in verdicts) and not self._was_stopped
        complete = {name: rounds for name, rounds in self._rounds.items() if rounds}
        return Summary(
            version=__version__,
            began=began.isoformat(timespec="seconds"),
            exit_code=0 if is_kept else 1,
            headline=_headline(verdicts, was_stopped=self._was_stopped),
            settings=self._settings(),
            verdicts=verdicts,
            notes=self._notes,
            warnings=summary.warnings(ledgers),
            endpoints=[
                summary.endpoint(name, self._plans[name].target.url, ledger)
                for name, ledger in ledgers.items()
            ],
            overheads=summary.overheads(complete),
            during=self._during,
        )

    def _settings(self) -> dict[str, Any]:
        order = self._order
        plan = next(iter(self._plans.values()))
        pace = "as fast as answers come" if order.pace is None else f"{order.pace:g} turns a second and user"
        return {
            "shape": order.shape,
            "about": SHAPES[order.shape].about,
            "time": format_duration(order.time_s),
            "users": plan.users,
            "mix": mix.written(plan.mix),
            "pace": pace,
            "rounds": order.rounds if order.compare else 1,
            "processes": order.processes,
            "seed": order.seed,
        }


def _whole(rounds: list[Ledger]) -> Ledger:
    whole = Ledger()
    for ledger in rounds:
        whole.after(ledger)
    return whole


def _judged(during: During | None) -> list[Verdict]:
    if during is None:
        return []
    if not during.has_begun:
        actual = "it never ran"
    elif during.exit_code is None:
        actual = f"it had not ended after {during.seconds:.1f} s"
    else:
        actual = f"ended with {during.exit_code} after {during.seconds:.1f} s"
    return [Verdict("the command", "ends with 0", actual, during.exit_code == 0)]


def _headline(verdicts: list[Verdict], *, was_stopped: bool) -> str:
    missed = [verdict.name for verdict in verdicts if not verdict.is_kept]
    if was_stopped:
        return "Stopped before its end"
    if not missed:
        return "All thresholds are kept"
    return f"Not kept: {', '.join(missed)}"


def _speaks(facts: Facts) -> str:
    eras = [facts.legacy] if facts.legacy else []
    eras += ["2026-07-28"] if facts.modern else []
    who = ", through mcp-proxy" if facts.is_proxy else ""
    kind = "" if facts.legacy is None else ", with sessions" if facts.sessions else ", without sessions"
    return f"MCP {' and '.join(eras)}{kind}{who}"


__all__ = ["STARTED", "Order", "Said", "run"]
