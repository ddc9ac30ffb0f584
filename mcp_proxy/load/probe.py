"""A first look at the server: what does it speak, and what can its users do?

Rules of this file: everything is tried once before it is done a thousand times. What the server cannot do is
left out and said in one sentence; it is no failure. Only a server that speaks no MCP at all ends the matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from mcp_proxy.load import CLASSES, Facts, LoadError, Plan, Target, Tool, messages, sequence, tools
from mcp_proxy.load.abuse import EDGE, SECOND_STREAM, TABLE, is_possible
from mcp_proxy.load.client import Answer, Client
from mcp_proxy.load.ledger import Ledger
from mcp_proxy.load.messages import Fields
from mcp_proxy.load.stream import Failed, Stopped, Stream
from mcp_proxy.load.users.abuse import AbuseUser
from mcp_proxy.load.users.listener import get_stream, subscription

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
"""Of every first try."""
LISTEN_S: Final = 1.5
"""How long a stream may take to show its first event."""


def probe(
    where: Target,
    headers: Fields,
    *,
    tool: Tool | None = None,
    verify: bool = True,
    timeout_s: float = TIMEOUT_S,
    with_abuses: bool = True,
    read_only: bool = False,
) -> Facts:
    """``read_only``: a tool has to say so itself. Raises LoadError if there is nothing to load: nobody
    listens, or it is no MCP server."""
    return _Probe(where, headers, tool, verify, timeout_s, read_only=read_only).run(with_abuses=with_abuses)


class _Probe:
    def __init__(
        self,
        where: Target,
        headers: Fields,
        tool: Tool | None,
        verify: bool,
        timeout_s: float,
        *,
        read_only: bool,
    ) -> None:
        self._asked_tool = tool
        self._read_only = read_only
        self._ledger = Ledger()
        self._plan = Plan(
            *(where, "smoke", 0.0, 1, {}, Facts()),
            headers=headers,
            timeout_s=timeout_s,
            patience_s=timeout_s,
            verify=verify,
        )
        self._client = Client(
            *(where, self._ledger, "probe"),
            headers=headers,
            timeout_s=timeout_s,
            patience_s=timeout_s,
            verify=verify,
        )
        self._session: str | None = None

    @property
    def facts(self) -> Facts:
        return self._plan.facts

    @property
    def _fields(self) -> Fields:
        return messages.session_fields(self._session, self.facts.legacy)

    def run(self, *, with_abuses: bool) -> Facts:
        facts = self.facts
        try:
            self._look_at_eras()
            self._look_at_tools()
            self._look_at_streams()
            self._look_for_proxy()
            if with_abuses:
                self._look_at_abuses()
            if self._session is not None:
                self._try(lambda: self._client.delete(self._fields))
        finally:
            self._client.close()
        self._say_what_is_left_out(with_abuses)
        return facts

    # --- eras ----------------------------------------------------------------------------------

    def _look_at_eras(self) -> None:
        facts = self.facts
        discovered = self._ask_modern("server/discover")
        if discovered is not None:
            facts.modern = messages.MODERN in (discovered.result.get("supportedVersions") or [])
        id = self._client.next_id()
        answer = self._try(lambda: self._client.ask("initialize", id, messages.initialize(id), []))
        if answer is not None:
            facts.legacy = messages.version_of(answer.result) or messages.LEGACY
            self._session = answer.headers.get("mcp-session-id")
            facts.sessions = self._session is not None
            initialized = messages.notification("notifications/initialized")
            self._try(lambda: self._client.tell("notifications/initialized", initialized, self._fields))
        if facts.legacy is None and not facts.modern:
            raise LoadError(self._why_nothing())

    def _why_nothing(self) -> str:
        where, reasons = self._plan.target, {entry.reason for entry in self._ledger.failures.values()}
        if any(reason.startswith("cannot connect") for reason in reasons):
            return f"{where.url} cannot be reached: {min(reasons)}"
        if reasons & {"HTTP 401", "HTTP 403"}:
            return (
                f"{where.url} asks for credentials ({min(reasons)}); use --header 'Authorization: Bearer ...'"
            )
        return (
            f"{where.url} does not speak MCP: initialize and server/discover got {', '.join(sorted(reasons))}"
        )

    # --- tools ---------------------------------------------------------------------------------

    def _look_at_tools(self) -> None:
        facts = self.facts
        listed = self._ask("tools/list")
        facts.lists_tools = listed is not None
        if self._asked_tool is not None:
            found = [self._asked_tool]
        else:
            named = None if listed is None else listed.result.get("tools")
            found = tools.candidates(named, must_say=self._read_only)
        for tool in found:
            answer = self._call(tool)
            if answer is None:
                continue
            is_stream = len(answer.events) > 1
            if is_stream and facts.stream_tool is None:
                numbered = sequence.is_numbered(answer.events)
                count = len([each for each in answer.events if sequence.number_of(each) is not None])
                facts.stream_tool = Tool(tool.name, tool.arguments, count if numbered else None)
                facts.answer_ids = any(event.id is not None for event in answer.events[:-1])
            elif not is_stream and facts.tool is None:
                facts.tool = tool
            if facts.tool is not None and facts.stream_tool is not None:
                break
        facts.tool = facts.tool or facts.stream_tool
        self._say_which_tools(bool(listed is not None and listed.result.get("tools")))

    def _call(self, tool: Tool) -> Answer | None:
        params = {"name": tool.name, "arguments": tool.arguments, "_meta": {"progressToken": 1}}
        return self._ask("tools/call", params)

    def _say_which_tools(self, has_tools: bool) -> None:
        facts = self.facts
        if facts.tool is not None:
            names = dict.fromkeys(each.name for each in (facts.tool, facts.stream_tool) if each is not None)
            facts.notes.append(f"tools that are called: {', '.join(names)}")
        elif self._asked_tool is not None:
            failure = next(reversed(self._ledger.failures.values()), None)
            why = failure.reason if failure else "no answer"
            raise LoadError(f"the tool {self._asked_tool.name} cannot be called so: {why}")
        elif has_tools and self._read_only:
            facts.notes.append("no tool says that it only reads, so none is called")
        elif has_tools:
            facts.notes.append("no tool is known to be harmless, so none is called; name one with --tool")
        else:
            method = "tools/list" if facts.lists_tools else "ping"
            facts.notes.append(f"the server has no tools; the load is {method}")

    # --- streams -------------------------------------------------------------------------------

    def _look_at_streams(self) -> None:
        facts = self.facts
        if self._session is not None:
            facts.get_stream, facts.get_ids = self._listen(lambda: get_stream(self._fields)(self._client, ""))
        if facts.modern:
            facts.listen, _ = self._listen(lambda: subscription(self._client, ""), patient=False)

    def _listen(self, opening: Callable[[], Stream], *, patient: bool = True) -> tuple[bool, bool]:
        """Whether it opens, and whether its events carry ids."""
        stream = self._try(opening)
        if stream is None:
            return False, False
        until = time.perf_counter() + LISTEN_S
        try:
            while patient and not stream.has_ended and (left_s := until - time.perf_counter()) > 0:
                if any(event.id for event in stream.events(left_s)):
                    return True, True
        except Failed:
            return False, False
        finally:
            stream.close()
        return True, False

    # --- abuses --------------------------------------------------------------------------------

    def _look_for_proxy(self) -> None:
        """Whoever refuses what is no JSON has read it: mcp-proxy says its word, what is in front cannot."""
        user = AbuseUser(self._plan, self._ledger)
        self._abuse(user, "bad JSON")
        user.end()
        self.facts.is_proxy = any(not word.startswith(EDGE) for word in self._ledger.refusals)

    def _look_at_abuses(self) -> None:
        """What is answered with 2xx is a server's own choice and left out; whatever is worse stays in,
        and will fail. mcp-proxy has no choice."""
        facts = self.facts
        user = AbuseUser(self._plan, self._ledger)
        accepted = []
        for name in (*(name for name in TABLE if is_possible(TABLE[name], facts)), SECOND_STREAM):
            if name == SECOND_STREAM and not facts.get_stream:
                continue
            status = self._abuse(user, name)
            if 200 <= status < 300 and not (facts.is_proxy and name in _ALWAYS_REFUSED):
                accepted.append(name)
            else:
                facts.abuses.append(name)
        user.end()
        if accepted:
            facts.notes.append(f"not refused by this server, so left out: {', '.join(accepted)}")

    def _abuse(self, user: AbuseUser, name: str) -> int:
        row = self._ledger.operation("probe", name, is_post=False, is_call=False)
        try:
            if name == SECOND_STREAM:
                return user.second_stream(row)
            return user.commit(row, TABLE[name])
        except Failed as failed:
            return failed.status

    def _say_what_is_left_out(self, with_abuses: bool) -> None:
        facts = self.facts
        why = {
            "session": "the server has no initialize",
            "modern": f"the server does not speak {messages.MODERN}",
            "stream": "the server opens no stream (GET or subscriptions/listen)",
            "reconnect": "events carry no ids, so nothing can be resumed",
            "abuse": "the server refuses none of it",
        }
        for kind in CLASSES:
            if not facts.serves(kind) and (kind != "abuse" or with_abuses):
                facts.notes.append(f"no {kind} users: {why[kind]}")

    # --- asking --------------------------------------------------------------------------------

    def _ask(self, method: str, params: dict[str, Any] | None = None) -> Answer | None:
        """In the era that is there."""
        if self.facts.legacy is None:
            return self._ask_modern(method, params)
        id = self._client.next_id()
        body = messages.request(id, method, params)
        return self._try(lambda: self._client.ask(method, id, body, self._fields))

    def _ask_modern(self, method: str, params: dict[str, Any] | None = None) -> Answer | None:
        id = self._client.next_id()
        body, fields = messages.modern_request(id, method, params), messages.modern_fields(method, params)
        return self._try(lambda: self._client.ask(method, id, body, fields))

    @staticmethod
    def _try(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except (Failed, Stopped):
            return None


_ALWAYS_REFUSED: Final = frozenset(TABLE) - {"foreign Host"}
"""By mcp-proxy, wherever it listens; Host is judged on loopback only."""
