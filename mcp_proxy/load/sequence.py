"""What a client got of a stream that broke, judged. Pure.

Rules of this file: a resumed stream continues behind the event whose id was given: nothing twice, nothing
missing, and nothing of another stream (MCP 2025-11-25, transports: Resumability and Redelivery).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mcp_proxy.load import messages
from mcp_proxy.load.messages import is_answer_to
from mcp_proxy.load.sse import Event


def fault(before: Sequence[Event], after: Sequence[Event]) -> str | None:
    """``before`` ends with the event that was given as ``Last-Event-ID``; ``after`` is what came then. None:
    nothing is wrong as far as ids and numbers show it."""
    ids = [event.id for event in (*before, *after) if event.id is not None]
    if len(set(ids)) < len(ids):
        return "an event came twice"
    numbers = [number for event in (*before, *after) if (number := number_of(event)) is not None]
    for number, following in pairwise(numbers):
        if following == number:
            return "an event came twice"
        if following < number:
            return "events out of order"
        if following > number + 1:
            return "events were missed"
    return None


def answer_fault(
    before: Sequence[Event], after: Sequence[Event], id: int, expected: int | None
) -> str | None:
    """Of a call whose answer was resumed: also exactly one response, and all ``expected`` numbers."""
    whole = [*before, *after]
    found = fault(before, after) if expected is not None else _twice(whole)
    if found is not None:
        return found
    parsed = [messages.parse(event.data) for event in whole if event.data]
    responses = [message for message in parsed if message is not None and is_answer_to(message, id)]
    if not responses:
        return "the response was missed"
    if len(responses) > 1:
        return "the response came twice"
    numbers = [number for event in whole if (number := number_of(event)) is not None]
    if expected is not None and len(numbers) != expected:
        return "events were missed"
    return messages.fault(responses[0], id)


def is_numbered(events: Sequence[Event]) -> bool:
    """Whether the notifications of a whole answer count from 1 without a gap."""
    numbers = [number for event in events if (number := number_of(event)) is not None]
    return bool(numbers) and numbers == list(range(1, len(numbers) + 1))


def number_of(event: Event) -> int | None:
    message = messages.parse(event.data) if event.data else None
    return None if message is None else messages.progress(message)


def _twice(events: Sequence[Event]) -> str | None:
    ids = [event.id for event in events if event.id is not None]
    return "an event came twice" if len(set(ids)) < len(ids) else None
