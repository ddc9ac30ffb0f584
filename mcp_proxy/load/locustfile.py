"""The users as locust knows them. ``locust -f`` takes this file as it is, with ``--host URL``.

Rules of this file: nothing happens here but the translation: a user's life is one task, a row of the ledger
is a request event. The server is looked at once, when locust starts.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import defaultdict
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from locust import User, events, task
from locust.env import Environment

from mcp_proxy.load import LoadError, Plan, target
from mcp_proxy.load.ledger import Ledger, Operation
from mcp_proxy.load.pace import Pace
from mcp_proxy.load.users import Scenario
from mcp_proxy.load.users.abuse import AbuseUser
from mcp_proxy.load.users.modern import ModernUser as Modern
from mcp_proxy.load.users.reconnect import ReconnectUser as Reconnect
from mcp_proxy.load.users.session import SessionUser as Session
from mcp_proxy.load.users.stream import StreamUser as Stream

SCENARIOS: dict[str, type[Scenario]] = {
    each.kind: each for each in (Session, Modern, Stream, Reconnect, AbuseUser)
}


class Run:
    """What the users of one environment share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ledger = Ledger()
        self.numbers: dict[str, itertools.count[int]] = defaultdict(itertools.count)


runs: WeakKeyDictionary[Environment, Run] = WeakKeyDictionary()


def begin(environment: Environment, plan: Plan) -> Run:
    """Give an environment its plan. Every row of the ledger is a request of locust's, too."""
    run = runs[environment] = Run(plan)

    def tell(row: Operation, seconds: float | None, size: int, reason: str | None) -> None:
        environment.events.request.fire(
            request_type=row.kind,
            name=row.name,
            response_time=None if seconds is None else seconds * 1000,
            response_length=size,
            exception=None if reason is None else RuntimeError(reason),
            context={},
        )

    run.ledger.listener = tell
    return run


class McpUser(User):
    """Runs the scenario of its kind."""

    abstract = True
    kind: ClassVar[str]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        run = runs[environment]
        self.scenario = SCENARIOS[self.kind](run.plan, run.ledger, next(run.numbers[self.kind]))
        now = time.perf_counter()
        self._pace = Pace(run.plan.pace, now, random.Random(self.scenario.random.random()))

    @task
    def live(self) -> None:
        """Turn after turn until it is stopped. Between tasks locust would kill the greenlet, and the kill may
        arrive when the user is in the middle of its next request."""
        stopping = self.scenario.client.stopping
        while not stopping.is_set():
            self.scenario.step(self._pace.due)
            stopping.wait(self._pace.wait_s(time.perf_counter()))

    def on_stop(self) -> None:
        self.scenario.end()

    def stop(self, force: bool = False) -> Any:
        self.scenario.stop()
        return super().stop(force)


class SessionUser(McpUser):
    kind = "session"
    weight = 6


class ModernUser(McpUser):
    kind = "modern"
    weight = 3


class StreamUser(McpUser):
    kind = "stream"
    weight = 2


class ReconnectUser(McpUser):
    kind = "reconnect"
    weight = 1


class AbuserUser(McpUser):
    kind = "abuse"
    weight = 1


USERS: dict[str, type[McpUser]] = {
    each.kind: each for each in (SessionUser, ModernUser, StreamUser, ReconnectUser, AbuserUser)
}


def _on_init(environment: Environment, **_: Any) -> None:
    """Under ``locust -f`` only: the command makes its own plan."""
    if environment in runs or not environment.host:
        return
    from mcp_proxy.load.probe import probe

    where = target(environment.host)
    try:
        facts = probe(where, [])
    except LoadError as error:
        raise SystemExit(str(error)) from None
    for note in facts.notes:
        logging.warning(note)
    served = [USERS[kind] for kind in USERS if facts.serves(kind)]
    environment.user_classes[:] = [each for each in environment.user_classes if each in served]
    begin(environment, Plan(where, "smoke", 0.0, 0, {}, facts))


events.init.add_listener(_on_init)
