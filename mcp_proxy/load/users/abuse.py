"""The client that does what it should not, and must be told so in the right words.

Rules of this file: every abuse has a connection of its own, since many of them end one. What is right is in
``mcp_proxy.load.abuse``; time is counted as for any other request, a refusal has to be quick, too.
"""

from __future__ import annotations

import time
from typing import ClassVar

from mcp_proxy.load import Plan, messages
from mcp_proxy.load.abuse import SECOND_STREAM, TABLE, Abuse, fault
from mcp_proxy.load.client import told_to_wait
from mcp_proxy.load.connection import Broken, Connection, Reply
from mcp_proxy.load.ledger import Ledger, Operation
from mcp_proxy.load.stream import Failed
from mcp_proxy.load.users import SessionScenario
from mcp_proxy.load.users.listener import get_stream


class AbuseUser(SessionScenario):
    kind: ClassVar[str] = "abuse"

    def __init__(self, plan: Plan, ledger: Ledger, number: int = 0) -> None:
        super().__init__(plan, ledger, number)
        self._names = list(self.facts.abuses)
        self.random.shuffle(self._names)
        self._next = 0

    def begin(self) -> None:
        """A stranger has no session."""

    def turn(self) -> None:
        self.client.due = None
        name = self._names[self._next % len(self._names)]
        self._next += 1
        row = self.ledger.operation(self.kind, name, is_post=False, is_call=False)
        if name == SECOND_STREAM:
            self.second_stream(row)
        else:
            self.commit(row, TABLE[name])

    def commit(self, row: Operation, abuse: Abuse) -> int:
        """The status of the refusal. Raises Failed, also if there was none."""
        path = self.plan.target.path.partition("?")[0] + abuse.suffix if abuse.suffix else None
        fields = [messages.AGENT, *self.plan.headers, *abuse.fields]
        began = time.perf_counter()
        try:
            connection = Connection(self.plan.target, verify=self.plan.verify)
            try:
                reply = connection.ask(
                    *(abuse.method, fields, abuse.body, self.plan.timeout_s), path=path, host=abuse.host
                )
                return self._judge(row, abuse, reply, began)
            finally:
                connection.close()
        except TimeoutError:
            raise self._failed(row, f"no answer in {self.plan.timeout_s:g} s", "") from None
        except Broken as broken:
            raise self._failed(row, f"no refusal: {broken.reason}", f"phase {broken.phase}") from None

    def _judge(self, row: Operation, abuse: Abuse, reply: Reply, began: float) -> int:
        word = reply.headers.get("mcp-proxy-reason")
        if word is not None:
            self.ledger.refused(word)
        wait_s = told_to_wait(reply)
        if wait_s is not None:
            self.ledger.waited(row, wait_s)
            self.client.stopping.wait(wait_s)
            return reply.status
        if reply.status < 300 and "event-stream" in reply.headers.get("content-type", ""):
            raise self._failed(row, f"expected a refusal, got {reply.status} and a stream", "", reply.status)
        body = reply.whole(self.plan.timeout_s)
        kind = reply.headers.get("content-type", "").partition(";")[0].strip()
        wrong = fault(abuse, reply.status, word, body, kind, is_proxy=self.facts.is_proxy)
        if wrong is not None:
            raise self._failed(row, wrong, body[:300].decode(errors="replace"), reply.status)
        self.ledger.answered(row, time.perf_counter() - began, len(body))
        return reply.status

    def second_stream(self, row: Operation) -> int:
        """The status of the refusal of a GET stream of a session that has one. Raises Failed."""
        super().begin()
        try:
            stream = get_stream(self.fields)(self.client, "")
            try:
                extra = (messages.EVENTS, *self.fields)
                return self.commit(row, Abuse(SECOND_STREAM, 409, method="GET", fields=extra))
            finally:
                stream.close()
        finally:
            self.finish()

    def _failed(self, row: Operation, reason: str, example: str, status: int = 0) -> Failed:
        self.ledger.failed(row, reason, example)
        return Failed(reason, status)
