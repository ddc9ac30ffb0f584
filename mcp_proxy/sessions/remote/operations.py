"""The registry's operations as commands of Redis.

Rules of this file: no library. One key per session and one key per command, so that a cluster
can serve them; every key begins with the prefix and has a time to live. What compares and then
writes is a script, because nothing may happen in between. An answer that cannot be read is
StoreError, never "nothing there".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from mcp_proxy.clock import now
from mcp_proxy.errors import NotAsked, StoreError
from mcp_proxy.sessions import ENDED, Listed, Page, SessionRecord, Stored
from mcp_proxy.sessions.remote import values
from mcp_proxy.sessions.remote.lane import Answer, Redirect, Refusal
from mcp_proxy.sessions.remote.link import Link

logger = logging.getLogger("mcp_proxy")

TOMBSTONE_S: Final = 600.0
"""At least; and as long as a session lives. Until then every replica has let go of the session:
what is cached is asked for again sooner, and what was partitioned off has expired."""

PAGE_LIMIT: Final = 1_000
PAGE_BUDGET_S: Final = 5.0
COMPLAINT_S: Final = 60.0
"""Between log lines about values that cannot be read."""

REVIVED: Final = b"new:"
"""Before the name, in what is published: the id has been issued again."""

NAME: Final = re.compile(rb"[0-9a-f]{40}")
_CURSOR: Final = re.compile(r"([0-9a-f]{0,40})\.([0-9]{1,20})", re.ASCII)

_CREATE: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return false
"""
_REPLACE: Final = """
local held = redis.call('GET', KEYS[1])
if held == '' or (held or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
"""
_CLAIM: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_DISCLAIM: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


P = ParamSpec("P")
T = TypeVar("T")

_Question = Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]]


def _timed(operation: str) -> Callable[[_Question[P, T]], _Question[P, T]]:
    """Tells ``on_asked`` of every question that was sent, however it ended. ``operation``: as operators
    call it."""

    def decorate(ask: _Question[P, T]) -> _Question[P, T]:
        @wraps(ask)
        async def timed(self: Operations, /, *arguments: P.args, **keywords: P.kwargs) -> T:
            began_s = now()
            try:
                answer = await ask(self, *arguments, **keywords)
            except NotAsked:
                raise
            except StoreError:
                self.on_asked(operation, now() - began_s)
                raise
            self.on_asked(operation, now() - began_s)
            return answer

        return timed

    return decorate


class Operations:
    """What of a Registry needs nothing but a Link. ``on_asked`` hears how many seconds an operation took."""

    def __init__(self, link: Link, ttl_s: float, prefix: str) -> None:
        self.on_asked: Callable[[str, float], None] = lambda operation, seconds: None
        self._link = link
        self._ttl_ms = _milliseconds(ttl_s)
        self._tombstone_ms = max(self._ttl_ms, _milliseconds(TOMBSTONE_S))
        self._sessions = f"{prefix}session:".encode()
        self._claims = f"{prefix}claim:".encode()
        self.channel = f"{prefix}changes"
        self._unreadable = 0
        self._complain_at_s = 0.0

    def _key(self, name: str) -> bytes:
        return self._sessions + name.encode()

    async def _one(self, key: bytes, *command: bytes | str | int) -> Answer:
        return _accepted(await self._link.ask(key, command))[0]

    # --- sessions --------------------------------------------------------------------

    @_timed("get")
    async def fetch(self, name: str) -> Stored:
        key = self._key(name)
        return self._decoded(await self._one(key, b"GET", key))

    @_timed("create")
    async def create(self, name: str, record: SessionRecord) -> bool:
        key, value = self._key(name), values.encode(record)
        if await self._one(key, b"SET", key, value, b"NX", b"PX", self._ttl_ms) is not None:
            return True
        # Over a tombstone: replicas that remember the end must hear that the id means another session.
        news = (self.channel, REVIVED.decode() + name)
        held = await self._one(key, b"EVAL", _CREATE, 1, key, values.TOMBSTONE, value, self._ttl_ms, *news)
        return self._decoded(held) is None

    @_timed("refresh")
    async def refresh(self, name: str) -> Stored:
        key = self._key(name)
        held = self._decoded(await self._one(key, b"GETEX", key, b"PX", self._ttl_ms))
        if held is ENDED and self._ttl_ms < self._tombstone_ms:
            # Sessions that live shorter than tombstones: the latter must not profit from it.
            await self._one(key, b"PEXPIRE", key, self._tombstone_ms)
        return held

    @_timed("move")
    async def replace(self, name: str, old: SessionRecord | None, new: SessionRecord) -> bool:
        key = self._key(name)
        expected = b"" if old is None else values.encode(old)
        return (
            await self._one(
                key, b"EVAL", _REPLACE, 1, key, expected, values.encode(new), self._ttl_ms, self.channel, name
            )
            == 1
        )

    @_timed("delete")
    async def end(self, name: str) -> None:
        key = self._key(name)
        _accepted(
            await self._link.ask(
                key,
                (b"SET", key, values.TOMBSTONE, b"PX", self._tombstone_ms),
                (b"PUBLISH", self.channel, name),
            )
        )

    # --- claims ----------------------------------------------------------------------

    @_timed("claim")
    async def claim(self, name: str, token: str, seconds: float) -> bool:
        key = self._claims + name.encode()
        return await self._one(key, b"EVAL", _CLAIM, 1, key, token, _milliseconds(seconds)) == 1

    @_timed("claim")
    async def disclaim(self, name: str, token: str) -> None:
        key = self._claims + name.encode()
        await self._one(key, b"EVAL", _DISCLAIM, 1, key, token)

    # --- for operators ---------------------------------------------------------------

    @_timed("show")
    async def show(self, name: str) -> Listed | None:
        key = self._key(name)
        value, ttl_ms = _accepted(await self._link.ask(key, (b"GET", key), (b"PTTL", key)))
        return self._listed(name, self._decoded(value), ttl_ms)

    @_timed("restore")
    async def restore(self, session: Listed) -> bool:
        ttl_ms = self._ttl_ms
        if session.expires_s is not None:
            if session.expires_s <= 0:
                return False
            ttl_ms = min(_milliseconds(session.expires_s), ttl_ms)
        key = self._key(session.name)
        return (
            await self._one(key, b"SET", key, values.encode(session.record), b"NX", b"PX", ttl_ms) is not None
        )

    @_timed("list")
    async def page(self, cursor: str, limit: int) -> Page:
        """The cursor is a node's id and that node's own cursor; 0 there is the beginning."""
        match = _CURSOR.fullmatch(cursor or ".0")
        if match is None or int(match[2]) >= 1 << 64:
            raise ValueError("this cursor was not issued here")
        limit = min(max(limit, 1), PAGE_LIMIT)
        until_s = now() + PAGE_BUDGET_S
        await self._link.ready()
        node, at = self._resume(match[1], int(match[2]))
        found: dict[str, Listed] = {}
        while node is not None and len(found) < limit:
            at, keys = await self._scan(node, at, limit)
            for listed in await self._look(node, keys):
                found[listed.name] = listed
            if at == 0:
                node = self._next(node)
            if now() > until_s:
                break
        return Page(list(found.values()), "" if node is None else f"{node}.{at}")

    def _resume(self, node: str, at: int) -> tuple[str | None, int]:
        nodes = self._link.nodes()
        if node in nodes:
            return node, at
        return self._next(node), 0  # the first of all; or that node is gone, its keys are elsewhere

    def _next(self, node: str) -> str | None:
        return next((other for other in self._link.nodes() if other > node), None)

    async def _scan(self, node: str, at: int, limit: int) -> tuple[int, list[bytes]]:
        pattern = re.sub(rb"([*?\[\]\\^])", rb"\\\1", self._sessions) + b"*"
        command = (b"SCAN", at, b"MATCH", pattern, b"COUNT", limit)
        answer = _accepted(await self._link.ask_node(node, command))[0]
        if not isinstance(answer, list) or len(answer) != 2:
            raise StoreError("redis: not an answer to SCAN")
        return int(answer[0]), [key for key in answer[1] if NAME.fullmatch(key, len(self._sessions))]

    async def _look(self, node: str, keys: list[bytes]) -> list[Listed]:
        if not keys:
            return []
        commands = [command for key in keys for command in ((b"GET", key), (b"PTTL", key))]
        answers = await self._link.ask_node(node, *commands)
        found = []
        for key, value, ttl_ms in zip(keys, answers[::2], answers[1::2], strict=True):
            try:
                held = self._decoded(value)
            except StoreError:
                continue  # counted; or the slot has just moved. One value must not hide all others.
            listed = self._listed(key[len(self._sessions) :].decode(), held, ttl_ms)
            if listed is not None:
                found.append(listed)
        return found

    # --- answers ---------------------------------------------------------------------

    def _listed(self, name: str, held: Stored, ttl_ms: Answer) -> Listed | None:
        if held is None or held is ENDED:
            return None
        return Listed(name, "", held, ttl_ms / 1000 if isinstance(ttl_ms, int) and ttl_ms >= 0 else None)

    def _decoded(self, value: Answer) -> Stored:
        if type(value) is Refusal or type(value) is Redirect:
            _accepted([value])
        try:
            return values.decode(value)
        except values.Unreadable as error:
            self._unreadable += 1
            if now() >= self._complain_at_s:
                self._complain_at_s = now() + COMPLAINT_S
                logger.error(
                    "session registry: %d values could not be read so far, the last one is %s",
                    self._unreadable,
                    error,
                )
            raise StoreError(f"the stored session cannot be read: {error}") from None


def _accepted(answers: list[Answer]) -> list[Answer]:
    for answer in answers:
        if type(answer) is Refusal:
            raise StoreError(f"redis refused: {answer.text}")
        if type(answer) is Redirect:
            raise StoreError("redis: the nodes of the cluster do not agree who has the slot")
    return answers


def _milliseconds(seconds: float) -> int:
    """Never zero, which Redis refuses."""
    return max(int(seconds * 1000), 1)
