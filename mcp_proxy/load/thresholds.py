"""What a run has to keep, as text and as verdicts. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from mcp_proxy.config.amounts import format_duration
from mcp_proxy.load.ledger import Ledger, quantile

_PART: Final = re.compile(r"(\d{1,3}(?:\.\d{1,4})?)%", re.ASCII)


class Thresholds(msgspec.Struct, frozen=True):
    """None: not asked for. Times are of calls that were answered, in seconds."""

    max_failures: float = 0.0
    """Part of all requests that may fail."""
    max_failed_posts: int | None = None
    p50_s: float | None = None
    p99_s: float | None = None
    first_event_p99_s: float | None = None
    min_rate: float | None = None
    """Answers a second."""


class Verdict(msgspec.Struct, frozen=True):
    name: str
    limit: str
    actual: str
    is_kept: bool


def part(text: str) -> float:
    """``"0.5%"`` → 0.005. Raises ValueError."""
    match = _PART.fullmatch(text)
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{text!r} is no share; write a percentage such as 0% or 0.5%")
    return float(match[1]) / 100


def judge(limits: Thresholds, ledger: Ledger) -> list[Verdict]:
    """Every threshold that was asked for. A run without an answer keeps none."""
    failures, answers = ledger.total_failures, ledger.answers
    all_requests = failures + answers
    share = failures / all_requests if all_requests else 1.0
    verdicts = [
        Verdict(
            "failures",
            f"at most {limits.max_failures * 100:g}%",
            f"{failures:,} of {all_requests:,} ({share:.2%})",
            bool(answers) and share <= limits.max_failures,
        )
    ]
    if limits.max_failed_posts is not None:
        posts = ledger.post_failures
        kept = bool(answers) and posts <= limits.max_failed_posts
        verdicts.append(Verdict("failed POSTs", f"at most {limits.max_failed_posts}", f"{posts:,}", kept))
    times, first = ledger.call_times(), ledger.first_times()
    verdicts += _time("p50", limits.p50_s, quantile(times, 0.5))
    verdicts += _time("p99", limits.p99_s, quantile(times, 0.99))
    verdicts += _time("p99 of the first event", limits.first_event_p99_s, quantile(first, 0.99))
    if limits.min_rate is not None:
        rate = answers / ledger.wall_s if ledger.wall_s else 0.0
        verdicts.append(
            Verdict("rate", f"at least {limits.min_rate:g}/s", f"{rate:.1f}/s", rate >= limits.min_rate)
        )
    return verdicts


def _time(name: str, limit_s: float | None, actual_s: float | None) -> list[Verdict]:
    if limit_s is None:
        return []
    actual = "nothing was measured" if actual_s is None else milliseconds(actual_s)
    return [
        Verdict(
            name, f"at most {format_duration(limit_s)}", actual, actual_s is not None and actual_s <= limit_s
        )
    ]


def milliseconds(seconds: float) -> str:
    """As people read it: three digits, and the unit that fits."""
    ms = seconds * 1000
    if ms >= 10_000:
        return f"{seconds:.1f} s"
    if ms >= 100:
        return f"{ms:.0f} ms"
    return f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"
