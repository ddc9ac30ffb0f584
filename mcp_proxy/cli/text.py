"""Text of others, made fit for a terminal.

Rules of this file: pure.
"""

from __future__ import annotations


def plain(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def shortened(text: str, size: int) -> str:
    """At most ``size`` characters, without its middle: names often differ at the beginning or at the end."""
    if len(text) <= size:
        return text
    tail = (size - 1) // 2
    return f"{text[: size - 1 - tail]}…{text[len(text) - tail :]}"
