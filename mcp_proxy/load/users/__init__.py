"""The users, as blocking code that knows no locust: a ``turn`` is one thing that such a client does.

Rules of this package: a user is a client as SDKs are (``client.py``), with a session of its own. What it does
is decided by its own random numbers, so that two runs of one seed do the same. A turn that fails is counted
where it fails; the user begins anew if its session is gone.
"""

from __future__ import annotations

import random
from typing import ClassVar

from mcp_proxy.load import Plan, messages
from mcp_proxy.load.client import Client, broken
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.messages import Fields
from mcp_proxy.load.stream import Failed, Stopped

REST_S = 0.2
"""After a failure: a user that is refused does not become a flood."""


class Scenario:
    """One user. ``step`` again and again, then ``end``."""

    kind: ClassVar[str]

    def __init__(self, plan: Plan, ledger: Ledger, number: int = 0) -> None:
        self.plan = plan
        self.facts = plan.facts
        self.ledger = ledger
        self.random = random.Random(f"{plan.seed} {self.kind} {number}")
        self.client = Client(
            plan.target,
            ledger,
            self.kind,
            headers=plan.headers,
            timeout_s=plan.timeout_s,
            patience_s=plan.patience_s,
            verify=plan.verify,
        )
        self._has_begun = False

    # What a kind of user is

    def begin(self) -> None:
        """Before the first turn, and after ``lost``."""

    def turn(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """The orderly end of what ``begin`` began, as far as it came."""

    # What whoever runs it calls

    def step(self, due: float | None = None) -> None:
        """One turn. ``due``: when it ought to have begun. What fails is in the ledger; nothing is raised."""
        self.client.due = due
        try:
            if not self._has_begun:
                self.client.due = None  # a schedule is one of turns
                self.begin()
                self._has_begun = True
            self.turn()
        except Failed as failed:
            if failed.status == 404:
                self.lost()
            self.client.stopping.wait(REST_S)
        except Stopped:
            pass
        except Exception as error:
            broken(self.client, error)

    def lost(self) -> None:
        """The server does not know the session (any more): an SDK user would start again."""
        self._has_begun = False

    def stop(self) -> None:
        """From another thread: end what waits."""
        self.client.stopping.set()

    def end(self) -> None:
        """After the last turn. Nothing is raised."""
        try:
            self.finish()
        except (Failed, Stopped):
            pass
        finally:
            self.client.close()


class SessionScenario(Scenario):
    """A user with a session of the handshake era. The base of all such."""

    def __init__(self, plan: Plan, ledger: Ledger, number: int = 0) -> None:
        super().__init__(plan, ledger, number)
        self.session: str | None = None
        self.version: str | None = None

    @property
    def fields(self) -> Fields:
        return messages.session_fields(self.session, self.version)

    def begin(self) -> None:
        """A beginning that failed in its middle is ended first: nobody collects sessions."""
        if self.session is not None:
            self.finish()
        client = self.client
        id = client.next_id()
        answer = client.ask("initialize", id, messages.initialize(id), [])
        self.session = answer.headers.get("mcp-session-id")
        self.version = messages.version_of(answer.result)
        client.tell(
            "notifications/initialized", messages.notification("notifications/initialized"), self.fields
        )

    def lost(self) -> None:
        super().lost()
        self.session = None

    def finish(self) -> None:
        """Once, whatever becomes of it: a user may be stopped in the middle, and ``end`` comes here again."""
        session, fields, self.session = self.session, self.fields, None
        if session is not None:
            self.client.delete(fields)
