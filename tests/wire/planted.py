"""Secrets for every place that there is for one, and what was told of them.

Rules of this file: values are distinct and look like nothing else, so that what is found is a leak.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.tools.client import Answer
from tests.wire.registry_rig import KEY, PASSWORD
from tests.wire.rig import SECRET

ADMIN_TOKEN = "planted-admin-token-7c1d"
CREDENTIAL = "PLANTED_CREDENTIAL"
"""The variable that has the credential of the pool."""

PLANTED = SECRET | {
    "admin-token": ADMIN_TOKEN,
    "wrong-admin-token": "planted-guessed-token-7c1d",
    "redis-password": PASSWORD,
    "new-redis-password": "planted-other-password-7c1d",
    "session-key": KEY,
    "userinfo": "planted-userinfo-7c1d",
    "fragment": "planted-fragment-7c1d",
    "meta": "planted-meta-7c1d",
    "stranger": "planted-stranger-7c1d",
    "broken": "planted-broken-7c1d",
    "bad-file": "planted-bad-file-7c1d",
    "order": "planted-order-7c1d",
    "collector": "planted-collector-7c1d",
}

WINDOW = 12
"""So many characters of a session id are worth hiding: they find it in another log."""

UNQUOTED = [
    f"a: {mark}{PLANTED['bad-file']}" for mark in ("!", "!!", "*", "&a &", "!x!", "!!int ", "@", "%", "{")
]
"""Passwords with a sign in front that means something in YAML."""

FIELDS = (
    f"Authorization: Bearer {SECRET['authorization']}",
    f"Cookie: id={SECRET['cookie']}",
    f"Proxy-Authorization: Basic {SECRET['proxy-authorization']}",
    f"X-Api-Key: {SECRET['api-key']}",
    f"Mcp-Param-Token: {SECRET['param']}",
    f"Last-Event-ID: {SECRET['last-event-id']}",
)
QUERY = f"?token={SECRET['query']}"
TARGET = "/mcp" + QUERY
URI = f"https://user:{PLANTED['userinfo']}@example.com/a?t={SECRET['query']}#{PLANTED['fragment']}"


class Said:
    """What was told, by where."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, str]] = []

    def add(self, where: str, text: bytes | str) -> None:
        self._texts.append((where, text if isinstance(text, str) else text.decode("utf-8", "replace")))

    def add_refusal(self, where: str, answer: Answer) -> None:
        """The proxy is the author, and says so."""
        assert answer.reason, answer
        self.add(where, answer.head.raw + answer.body)

    def assert_discreet(self, secrets: dict[str, str], sessions: set[str]) -> None:
        parts = {part for id in sessions for part in windows(id)}
        assert parts
        for where, text in self._texts:
            assert (where, [name for name, value in secrets.items() if value in text]) == (where, [])
            assert (where, [part for part in parts if part in text]) == (where, [])


def windows(id: str) -> Iterator[str]:
    for start in range(len(id) - WINDOW + 1):
        yield id[start : start + WINDOW]
