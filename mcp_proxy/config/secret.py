"""Secrets: where they come from, and how they stay out of everything that is shown.

Rules of this file: the value leaves a ``Secret`` only through ``.value``; no message holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mcp_proxy.config.values import Invalid

MASK = "[redacted]"

FILE = "file:"
"""What a secret in a file begins with."""


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A secret text. ``repr`` and ``str`` hide it; equal when the values are."""

    value: str
    is_literal: bool = field(default=False, compare=False)
    """It stood in the configuration itself, which ``mcp-proxy check`` warns about."""

    def __repr__(self) -> str:
        return f"Secret({MASK})"


def read_secret(text: object, environ: Mapping[str, str]) -> Secret:
    """``env:NAME``, ``file:PATH`` (one trailing newline is not part of it) or the secret itself."""
    if isinstance(text, Secret):
        return text
    if not isinstance(text, str):
        raise Invalid("a secret must be text", "write env:NAME, file:PATH, or the secret in quotes")
    if text.startswith("env:"):
        secret = Secret(_from_environment(text.removeprefix("env:"), environ))
    elif text.startswith(FILE):
        secret = Secret(_from_file(text.removeprefix(FILE)))
    else:
        secret = Secret(text, is_literal=True)
    if not secret.value:
        raise Invalid("the secret is empty", "give it a value, or remove the key")
    if not all("\x20" <= character <= "\x7e" for character in secret.value):
        # It becomes (part of) a header value: RFC 9110 section 5.5; CR and LF would split the head.
        raise Invalid("the secret holds characters other than visible ASCII", "look for line breaks in it")
    return secret


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    try:
        return environ[name]
    except KeyError:
        raise Invalid(f"the environment variable {name!r} is not set", f"export {name}=...") from None


def _from_file(name: str) -> str:
    try:
        text = Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Invalid(f"the secret file {name!r} is not UTF-8 text", "write the secret as text") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise Invalid(
            f"cannot read the secret file {name!r}: {reason.lower()}", "check the path and its permissions"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
