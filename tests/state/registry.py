"""One real Redis for the whole test: its faults, and the passage of time in it.

Rules of this file: time passes for Redis by taking it from every key's time to live, so that hours
take no time. What is asked here goes over a connection of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mcp_proxy.sessions import SessionKey, Stored
from mcp_proxy.sessions.remote import values
from tests.tools.redis_server import RedisServer

PREFIX: Final = "state-test:"

_AGE: Final = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then redis.call('PEXPIRE', key, left - ARGV[1]) end
end
"""
_KEYS: Final = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do found[#found + 1] = {key, redis.call('PTTL', key)} end
return found
"""


class AgeingRedis:
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.is_up = True
        self.is_frozen = False
        self._now_s = 0.0
        self._aged_s = 0.0
        """How much of ``_now_s`` its keys have lived through."""
        self._saved_s: float | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.server.socket_path}"

    @property
    def answers(self) -> bool:
        return self.is_up and not self.is_frozen

    def reset(self) -> None:
        """As new, for the next example."""
        if self.is_frozen:
            self.thaw()
        if not self.is_up:
            self.restart(with_data=False)
        self.server.flush()
        self._now_s = self._aged_s = 0.0
        self._saved_s = None

    def barrier(self) -> None:
        """Whatever was asked before has been answered. Twice: answers of one turn leave in no order."""
        if self.answers:
            self.server.command("PING")
            self.server.command("PING")

    # --- time ------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        self._now_s += seconds
        self._age()

    def _age(self) -> None:
        if self.answers and self._now_s > self._aged_s:
            self.server.command("EVAL", _AGE, 0, int((self._now_s - self._aged_s) * 1000))
            self._aged_s = self._now_s

    # --- faults ----------------------------------------------------------------------

    def freeze(self) -> None:
        self.is_frozen = True
        self.server.freeze()

    def thaw(self) -> None:
        self.is_frozen = False
        self.server.thaw()
        self._age()

    def save(self) -> None:
        self.server.command("SAVE")
        self._saved_s = self._aged_s

    def forget_save(self) -> None:
        self._saved_s = None

    @property
    def has_saved(self) -> bool:
        return self._saved_s is not None

    def kill(self) -> None:
        if self.is_frozen:
            self.thaw()
        self.is_up = False
        self.server.kill()

    def restart(self, *, with_data: bool) -> None:
        """With what was saved, or with nothing."""
        if not with_data:
            Path(self.server.socket_path).with_name("dump.rdb").unlink(missing_ok=True)
            self._saved_s = None
        self.server.start()
        self.is_up = True
        self._aged_s = self._now_s if self._saved_s is None else self._saved_s
        self._age()

    def flush(self) -> None:
        self.server.flush()

    def cut_subscriptions(self) -> None:
        self.server.command("CLIENT", "KILL", "TYPE", "pubsub")

    # --- what it holds ---------------------------------------------------------------

    def stored(self, key: SessionKey) -> Stored:
        return values.decode(self.server.command("GET", f"{PREFIX}session:{key.name}"))

    def entries(self) -> list[tuple[str, int]]:
        """Every key, and milliseconds that are left to it."""
        return [(key.decode(), left) for key, left in self.server.command("EVAL", _KEYS, 0)]
