"""What one value of the configuration may look like: refusals, and words that are not amounts or places.

Rules of this file: pure functions, no I/O, no pydantic. Whatever is refused raises ``Invalid``,
whose message names the cause and whose hint names the cure. No message repeats a value that may
hold a secret (URLs with a password, tokens). Amounts are in ``amounts.py``, hosts, paths and URLs in
``addresses.py``, by the same rules.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SESSION_KEY_VARIABLE = "MCP_PROXY_SESSION_KEY"

SESSION_KEY_CHARS = 32
"""Of any secret that is a key. Key derivation makes guessing slow, not impossible."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
"""A header name (RFC 9110 section 5.6.2)."""


class Invalid(ValueError):
    """A refused value: ``message`` says what is wrong, ``hint`` what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the closest of ``known``, or all of them when none is close."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(names)}" if names else ""


def shown(value: str) -> str:
    """``value`` for a message, unless something in it may be a password."""
    return "the URL" if "@" in value or len(value) > 200 else repr(value)


def kind_of(value: object) -> str:
    names: dict[type, str] = {bool: "true/false", int: "a number", float: "a number", str: "text"}
    if value is None:
        return "an empty value"
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else "a mapping")


def session_key(value: str) -> str:
    """A secret that session ids are sealed with. Raises Invalid when it is short enough to be guessed."""
    if len(value) < SESSION_KEY_CHARS:
        raise Invalid(
            f"the session key has {len(value)} characters, which is too few",
            f"use {SESSION_KEY_CHARS} or more that nobody can guess: openssl rand -base64 32",
        )
    return value


def header_name(value: object) -> str:
    """In lower case."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        said = shown(value) if isinstance(value, str) else kind_of(value)
        raise Invalid(f"{said} is not the name of a header", "use letters, digits and -, such as x-api-key")
    return value.lower()


def service_name(value: object) -> str:
    """What a service is called where its traces are shown."""
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,255}", value):
        said = shown(value) if isinstance(value, str) else kind_of(value)
        raise Invalid(f"{said} is not the name of a service", "write a word such as mcp-proxy")
    return value


def affinity_key(value: object) -> str:
    """``principal``, ``client`` or ``header:name`` (the name in lower case)."""
    if isinstance(value, str):
        word, colon, name = value.partition(":")
        if (word in ("principal", "client") and not colon) or (word == "header" and _TOKEN.fullmatch(name)):
            return value.lower()
    raise Invalid(
        f"{shown(value) if isinstance(value, str) else kind_of(value)} is not a key of affinity",
        "write principal, client, or header: and the name of a header, such as header:x-tenant",
    )
