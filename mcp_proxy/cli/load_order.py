"""What ``mcp-proxy load`` is asked for: options in, an ``Order`` out.

Rules of this file: it imports click only, the rest is imported when there is something to read. What cannot
be meant is a ``click.UsageError`` with a sentence, before anything is started.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from mcp_proxy.load.campaign import Order
    from mcp_proxy.load.thresholds import Thresholds

OWN_HEADERS: Final = frozenset(["host", "content-length", "transfer-encoding", "connection"])
"""What frames a request or says where it goes; two of a kind would be an attack and not a load."""
STARTED: Final = ("direct", "nginx", "proxy", "nginx+proxy")


def read_order(url: str | None, given: dict[str, Any]) -> Order:
    """Raises click.UsageError with every word of why."""
    from mcp_proxy.load import Tool, mix, target
    from mcp_proxy.load.campaign import SHORTEST_ROUND_S, Order
    from mcp_proxy.load.shapes import SHAPES

    shape = SHAPES[given["shape"]]
    if given["arguments"] is not None and given["tool"] is None:
        raise click.UsageError("--arguments are those of a --tool")
    if given["shape"] == "drain" and given["during"] is None:
        raise click.UsageError("--shape drain needs --during COMMAND, which restarts what serves URL")
    if given["read_only"] and given["tool"] is not None:
        raise click.UsageError("--read-only and --tool do not go together")
    compare = _compared(given["compare"])
    if compare and given["during"] is not None:
        raise click.UsageError("--during and --compare do not go together")
    time_s = _seconds("--time", given["duration"]) or shape.time_s
    if compare and time_s < given["rounds"] * SHORTEST_ROUND_S:
        raise click.UsageError(f"--time is too short for {given['rounds']} rounds")
    order = Order(
        target=None if url is None else _checked("URL", target, url),
        shape=given["shape"],
        time_s=time_s,
        users=given["users"] or shape.users,
        pace=_pace(given["pace"]),
        headers=[_header(text) for text in given["headers"]],
        tool=None if given["tool"] is None else Tool(given["tool"], _arguments(given["arguments"])),
        thresholds=_thresholds(given),
        during=given["during"],
        compare=compare,
        **{name: given[name] for name in ("rounds", "processes", "seed", "read_only")},
        timeout_s=_seconds("--timeout", given["timeout"]) or 30.0,
        verify=not given["insecure"],
    )
    if given["mix"] is not None:
        order.mix = _checked("--mix", mix.parse, given["mix"])
    elif compare:
        # Refusals differ from endpoint to endpoint, and what is compared is time.
        order.mix = {kind: weight for kind, weight in order.mix.items() if kind != "abuse"}
    return order


def _thresholds(given: dict[str, Any]) -> Thresholds:
    from mcp_proxy.load.thresholds import Thresholds, part

    posts = given["max_failed_posts"]
    return Thresholds(
        max_failures=_checked("--max-failures", part, given["max_failures"]),
        max_failed_posts=0 if posts is None and given["shape"] == "drain" else posts,
        p50_s=_seconds("--p50", given["p50"]),
        p99_s=_seconds("--p99", given["p99"]),
        first_event_p99_s=_seconds("--first-event-p99", given["first_event_p99"]),
        min_rate=given["min_rate"],
    )


def _checked(name: str, read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise click.UsageError(f"{name}: {error}") from None


def _seconds(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    from mcp_proxy.config.amounts import positive_duration
    from mcp_proxy.config.values import Invalid

    try:
        return positive_duration(text)
    except Invalid as error:
        raise click.UsageError(f"{name}: {error.message}; {error.hint}") from None


def _pace(text: str) -> float | None:
    if text == "none":
        return None
    try:
        pace = float(text)
    except ValueError:
        pace = 0.0
    if not 0 < pace <= 10_000:
        raise click.UsageError(f"--pace: {text!r} is no number of turns a second; write 10, 0.5 or none")
    return pace


def _header(text: str) -> tuple[str, str]:
    name, mark, value = (part.strip() for part in text.partition(":"))
    if not mark or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise click.UsageError(f"--header: {text.partition(':')[0]!r} is no header; write 'Name: value'")
    if name.lower() in OWN_HEADERS:
        raise click.UsageError(f"--header: {name} is the load test's own")
    value = _revealed(name, value)
    if not value.isprintable() or not value.isascii():
        raise click.UsageError(f"--header: the value of {name} has characters that a header cannot have")
    return name, value


def _revealed(name: str, value: str) -> str:
    """A credential need not stand in a command line, which everybody on the machine can read."""
    from mcp_proxy.config.secret import FILE, read_secret
    from mcp_proxy.config.values import Invalid

    if not value.startswith(("env:", FILE)):
        return value
    try:
        return read_secret(value, os.environ).value
    except Invalid as error:
        raise click.UsageError(f"--header: {name}: {error.message}; {error.hint}") from None


def _arguments(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise click.UsageError('--arguments: write a JSON object, such as {"city": "Oslo"}')
    return value


def _compared(text: str | None) -> list[tuple[str, Any]]:
    """Names, with the address of those that exist already."""
    from mcp_proxy.load import target

    found: list[tuple[str, Any]] = []
    for entry in (text or "").split(",") if text is not None else []:
        name, mark, url = entry.strip().partition("=")
        if not mark and name not in STARTED:
            raise click.UsageError(
                f"--compare: {name!r} is none of {', '.join(STARTED)}; others are name=URL"
            )
        if name in dict(found):
            raise click.UsageError(f"--compare: {name!r} is there twice")
        found.append((name, _checked("--compare", target, url) if mark else None))
    if len(found) == 1:
        raise click.UsageError("--compare needs two names or more")
    return found
