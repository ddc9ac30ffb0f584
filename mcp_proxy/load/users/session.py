"""The everyday client of the handshake era: a session, calls, a GET stream beside them, and the end.

Rules of this file: a session has so many calls and is ended by DELETE; then the next begins. The GET stream
is read by a thread of its own, which comes back as SDK clients do when the stream ends.
"""

from __future__ import annotations

import threading
from typing import ClassVar, Final

from mcp_proxy.load import Plan, Tool, messages
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.users import SessionScenario
from mcp_proxy.load.users.listener import Listener, get_stream

CALLS_PER_SESSION: Final = 25
LIST_SHARE: Final = 0.1
"""Of turns that ask for the list of tools instead of calling one."""
STREAM_SHARE: Final = 0.25
"""Of calls that use a tool which is answered by events, where there is one."""


class SessionUser(SessionScenario):
    kind: ClassVar[str] = "session"

    def __init__(self, plan: Plan, ledger: Ledger, number: int = 0) -> None:
        super().__init__(plan, ledger, number)
        self._calls = 0
        self._listener: Listener | None = None

    def begin(self) -> None:
        super().begin()
        self._list()
        if self.facts.get_stream and self.session is not None:
            self._listener = Listener(self.plan, self.ledger, self.kind, get_stream(self.fields))
            threading.Thread(target=self._listener.run, daemon=True).start()
        self._calls = 0  # last: who did not come so far begins again

    def turn(self) -> None:
        if self._calls >= CALLS_PER_SESSION:
            due, self.client.due = self.client.due, None  # what is due is a call
            self.finish()
            self.begin()
            self.client.due = due
        self._calls += 1
        tool = self.facts.tool
        if tool is None or self.random.random() < LIST_SHARE:
            self._list()
            return
        if self.facts.stream_tool is not None and self.random.random() < STREAM_SHARE:
            tool = self.facts.stream_tool
        self.call(tool)

    def call(self, tool: Tool) -> None:
        id = self.client.next_id()
        params = {"name": tool.name, "arguments": tool.arguments, "_meta": {"progressToken": id}}
        self.client.ask(
            "tools/call", id, messages.request(id, "tools/call", params), self.fields, splits=True
        )

    def _list(self) -> None:
        id = self.client.next_id()
        method = "tools/list" if self.facts.lists_tools else "ping"
        self.client.ask(method, id, messages.request(id, method), self.fields)

    def lost(self) -> None:
        super().lost()
        self._hush()

    def finish(self) -> None:
        self._hush()
        super().finish()

    def end(self) -> None:
        self._hush()
        super().end()

    def _hush(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
