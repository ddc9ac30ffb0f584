"""A Redis Cluster: a lane for every node, and the table that says which one to take.

Rules of this file: no library. An operation follows at most ``REDIRECTS`` redirects within its
budget. The table is read again when a node says that a slot moved or stops answering; whoever
answers first is believed. One node that hangs delays nobody whose keys are elsewhere.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

from mcp_proxy.clock import now, patience
from mcp_proxy.errors import StoreError
from mcp_proxy.sessions.remote.lane import Answer, Command, Lane, LinkError, Redirect, Refusal
from mcp_proxy.sessions.remote.link import Server
from mcp_proxy.sessions.remote.slots import Node, SlotTable, slot_of
from mcp_proxy.tasks import Tasks

REDIRECTS: Final = 3
"""A slot that is being moved needs two; more are a quarrel between nodes."""

QUARREL_PAUSE_S: Final = 0.01
"""Before every redirect but the first, longer each time: nodes that tell each other of a move
disagree for a few milliseconds."""

REFRESH_BUDGET_S: Final = 0.25
"""For one node to tell the table."""

REFRESH_PAUSE_S: Final = 0.3
"""Between two readings of the table, however many slots move."""


class _Member:
    """A node and the lane to it."""

    def __init__(self, server: Server, lane: Lane) -> None:
        self.server = server
        self.lane = lane


class ClusterLink:
    """``connect`` makes a Server, without I/O. ``changed`` is called when ``state`` may differ."""

    def __init__(
        self,
        seeds: Sequence[Node],
        connect: Callable[[Node], Server],
        tasks: Tasks,
        budget_s: float,
        changed: Callable[[str | None], None],
    ) -> None:
        self._seeds = seeds
        self._connect = connect
        self._tasks = tasks
        self._budget_s = budget_s
        self._changed = changed
        self._table: SlotTable | None = None
        self._members: dict[Node, _Member] = {}
        self._refresher: asyncio.Task[None] | None = None
        self._first_round = asyncio.Event()
        self._since_s = now()
        self._is_closed = False

    # --- operations ------------------------------------------------------------------

    async def ask(self, key: bytes, *commands: Command) -> list[Answer]:
        slot = slot_of(key)
        began_s = now()
        if self._table is not None and (node := self._table.owner(slot)) is not None:
            answers = await self._lane(node).submit(commands)
            if _redirect(answers) is None:
                return self._judged(answers)
        else:
            node, answers = None, []
        try:  # the rare ways have a timer of their own
            async with patience(began_s + self._budget_s - now()):
                return self._judged(await self._follow(slot, node, commands, answers))
        except TimeoutError:
            raise StoreError("redis: no answer in time") from None

    async def _follow(
        self, slot: int, node: Node | None, commands: Sequence[Command], answers: list[Answer]
    ) -> list[Answer]:
        """Find the owner, or go where ``node`` pointed with its ``answers``."""
        if node is None:
            node = (await self._known_table()).owner(slot)
            if node is None:
                self.refresh_soon()
                raise StoreError("redis: no node of the cluster has the slot")
            answers = await self._lane(node).submit(commands)
        for hop in range(REDIRECTS):
            if (redirect := _redirect(answers)) is None:
                break
            if hop:
                await asyncio.sleep(hop * QUARREL_PAUSE_S)
            node = Node(redirect.host or node.host, redirect.port)
            if redirect.ask:
                answers = await self._lane(node).submit(_asking(commands))
                del answers[::2]
            else:
                (await self._known_table()).move(slot, node)
                self.refresh_soon()
                answers = await self._lane(node).submit(commands)
        return answers

    def _judged(self, answers: list[Answer]) -> list[Answer]:
        if any(type(answer) is Refusal and answer.text.startswith("CLUSTERDOWN") for answer in answers):
            self.refresh_soon()
        return answers

    async def _known_table(self) -> SlotTable:
        if self._table is None:
            self.refresh_soon()
            await self._first_round.wait()
            if self._table is None:
                raise StoreError("redis: no node of the cluster answers")
        return self._table

    def nodes(self) -> list[str]:
        """Their ids, in an order that stays."""
        return sorted(self._table.ids) if self._table is not None else []

    async def ask_node(self, node_id: str, *commands: Command) -> list[Answer]:
        table = await self._known_table()
        if node_id not in table.ids:
            raise StoreError("redis: the node left the cluster")
        return await self._lane(table.ids[node_id]).submit(commands)

    async def ready(self) -> None:
        """Returns when ``nodes`` can be answered; raises StoreError if it cannot."""
        try:
            async with patience(self._budget_s):
                await self._known_table()
        except TimeoutError:
            raise StoreError("redis: no answer in time") from None

    async def listen(self, channel: str, opened: Callable[[], None], heard: Callable[[bytes], None]) -> None:
        """At any node: what is published at one is heard at all."""
        nodes = list(self._table.nodes) if self._table is not None else list(self._seeds)
        answering = [
            node for node in nodes if node not in self._members or self._lane(node).breaker.is_closed
        ]
        server = self._connect(random.choice(answering or nodes))
        try:
            await server.listen(channel, opened, heard)
        finally:
            await server.aclose()

    # --- members ---------------------------------------------------------------------

    def _lane(self, node: Node) -> Lane:
        member = self._members.get(node)
        if member is None:
            if self._is_closed:
                raise StoreError("the registry is closed")
            server = self._connect(node)
            lane = Lane(server.exchange, self._tasks, self._budget_s, self._member_changed)
            member = self._members[node] = _Member(server, lane)
        return member.lane

    def _member_changed(self, cause: str | None) -> None:
        if cause is not None:
            self.refresh_soon()
        self._changed(cause)

    def suspect(self) -> None:
        for member in list(self._members.values()):
            member.lane.suspect()
        self.refresh_soon()

    # --- the table -------------------------------------------------------------------

    def refresh_soon(self) -> None:
        if self._refresher is None and not self._is_closed:
            self._refresher = self._tasks.spawn(self._refresh())

    async def _refresh(self) -> None:
        """Once, and on as long as something is wrong: a failover takes a while."""
        try:
            while True:
                await self._read_table()
                self._first_round.set()
                # Also after a success: slots that move one by one are one reading.
                await asyncio.sleep(REFRESH_PAUSE_S * random.uniform(0.8, 1.2))
                if self._table is not None and not self._unreachable():
                    return
        finally:
            self._refresher = None

    async def _read_table(self) -> None:
        nodes = list({*self._members, *self._seeds})
        random.shuffle(nodes)
        nodes.sort(key=lambda node: node in self._members and not self._lane(node).breaker.is_closed)
        cause = "no node answers"
        for node in nodes:
            member = self._members.get(node)
            server = member.server if member is not None else self._connect(node)
            try:
                async with asyncio.timeout(REFRESH_BUDGET_S):
                    answer = (await server.exchange([("CLUSTER", "SLOTS")]))[0]
                table = SlotTable.from_answer(answer, node.host)
            except (LinkError, TimeoutError, ValueError) as error:
                cause = str(error) or "no answer in time"
            else:
                if len(table):
                    await self._adopt(table)
                    return
                cause = "the cluster has no slots"
            finally:
                if member is None:
                    await server.aclose()
        if self._table is None:
            self._changed(cause)

    async def _adopt(self, table: SlotTable) -> None:
        was_known = self._table is not None
        self._table = table
        for node in table.nodes:
            if not self._lane(node).is_reached:
                self._lane(node).suspect()
        for node in set(self._members) - table.nodes:
            lane = self._members[node].lane
            if lane.is_idle or not lane.breaker.is_closed:
                lane.close()
                await self._members.pop(node).server.aclose()
        if not was_known:
            self._since_s = now()
        self._changed(None)

    # --- state -----------------------------------------------------------------------

    def _unreachable(self) -> list[Lane]:
        nodes = self._table.nodes if self._table is not None else set()
        return [m.lane for node, m in self._members.items() if node in nodes and not m.lane.breaker.is_closed]

    def start(self) -> None:
        self.refresh_soon()

    def state(self) -> tuple[bool, str, float]:
        """Whether all nodes answer, what to call what does not, and since when."""
        if self._table is None:
            return False, "redis cluster", self._since_s
        down = self._unreachable()
        since_s = min((lane.breaker.failing_since_s or now() for lane in down), default=now())
        return not down, f"{len(down)} of {len(self._table.nodes)} nodes of the redis cluster", since_s

    async def aclose(self) -> None:
        self._is_closed = True
        self._first_round.set()
        if self._refresher is not None:
            self._refresher.cancel()
        for member in self._members.values():
            member.lane.close()
        members, self._members = self._members, {}
        for member in members.values():
            await member.server.aclose()


def _redirect(answers: list[Answer]) -> Redirect | None:
    return next((answer for answer in answers if type(answer) is Redirect), None)


def _asking(commands: Sequence[Command]) -> list[Command]:
    # ASKING holds for the next command of its connection, so each one gets its own.
    return [part for command in commands for part in (("ASKING",), command)]
