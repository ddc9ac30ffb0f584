"""The report for people: one HTML file that asks nobody else for anything. Pure: text out.

Rules of this file: what a server has said is escaped, always; the page has no script, and its policy allows
none. The answer comes first: was everything kept? Then what it rests on, down to the single failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

from mcp_proxy.load.ledger import Failure
from mcp_proxy.load.report.chart import Line, chart
from mcp_proxy.load.summary import ALL_FIRST, ALL_JSON, Endpoint, Overhead, Row, Summary, Times
from mcp_proxy.load.thresholds import milliseconds

_STYLE: Final = Path(__file__).with_name("style.css")
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
_KINDS: Final = {
    "session": "Session users",
    "modern": "Modern users (2026-07-28)",
    "stream": "Stream holders",
    "reconnect": "Reconnecting users",
    "abuse": "Abusers",
}
_TERMS: Final = (
    (
        "Failure",
        "An answer that was not the right one: another status, a JSON-RPC error or isError inside 200, a "
        "stream that was cut or ended without its answer, something twice or missing after a reconnect, a "
        "wrong refusal of an abuse, a connection that broke, or no answer in time.",
    ),
    (
        "Told to wait",
        "503 or 429 with Retry-After: nothing ran, the user waited and asked again. Not a failure, unless it "
        "was never served.",
    ),
    ("First event", "From sending the request to the arrival of the first event of its stream."),
    ("As scheduled", "From the moment at which the request was due: a server that stalls cannot hide it."),
)
_MINUS: Final = "\N{MINUS SIGN}"


def page(summary: Summary) -> str:
    """The whole document."""
    is_kept = summary.exit_code == 0
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
        f"<title>Load test: {escape(summary.headline)}</title>",
        f'<link rel="icon" href="data:,"><style>{_STYLE.read_text()}</style></head><body>',
        f'<header class="{"kept" if is_kept else "missed"}"><div class="inner">',
        f'<p class="soft">mcp-proxy load {escape(summary.version)} · {escape(_when(summary.began))}</p>',
        f"<h1>{'✓' if is_kept else '✗'} {escape(summary.headline)}</h1>",
        f"<p>{escape(_target(summary))}</p></div></header><main>",
        *_warnings(summary.warnings),
        *_thresholds(summary),
        *_overheads(summary),
        *(part for endpoint in summary.endpoints for part in _endpoint(endpoint, summary)),
        *_during(summary),
        *_about(summary),
        "</main></body></html>\n",
    ]
    return "".join(parts)


def _when(began: str) -> str:
    return began.replace("T", " ").replace("+00:00", " UTC")


def _target(summary: Summary) -> str:
    about = summary.settings
    return f"{summary.endpoints[0].url} · {about['shape']}, {about['time']}, {about['users']} users"


# --- verdicts ---------------------------------------------------------------------------------


def _warnings(warnings: Sequence[str]) -> Iterator[str]:
    for warning in warnings:
        yield f'<p class="note warn"><b>Doubtful:</b> {escape(warning)}</p>'


def _thresholds(summary: Summary) -> Iterator[str]:
    yield "<section><h2>Thresholds</h2><table><thead><tr><th></th><th>What</th><th>Limit</th>"
    yield "<th>Found</th></tr></thead>"
    for verdict in summary.verdicts:
        mark = '<td class="good">kept</td>' if verdict.is_kept else '<td class="bad">not kept</td>'
        cells = "".join(f"<td>{escape(text)}</td>" for text in (verdict.name, verdict.limit, verdict.actual))
        yield f"<tr>{mark}{cells}</tr>"
    yield "</table></section>"


def _overheads(summary: Summary) -> Iterator[str]:
    if not summary.overheads:
        return
    base = summary.endpoints[0].name
    yield f"<section><h2>Above {escape(base)}</h2>"
    rounds = summary.settings["rounds"]
    yield f'<p class="soft">Medians of {rounds} rounds, in turns, with the same plan for each.</p>'
    yield '<div class="wide"><table><thead><tr><th>Endpoint</th><th>Operation</th><th>What</th>'
    yield '<th class="number">p50</th><th class="number">more</th><th class="number">times</th>'
    yield '<th class="number">p99</th><th class="number">more</th><th class="number">times</th></tr></thead>'
    for each in summary.overheads:
        yield _overhead(each)
    yield "</table></div></section>"


def _overhead(each: Overhead) -> str:
    names = "".join(f"<td>{escape(text)}</td>" for text in (each.endpoint, each.operation, each.what))
    numbers = [
        *(milliseconds(each.p50), _more(each.p50 - each.base_p50), f"{each.p50_ratio:.2f}"),
        *(milliseconds(each.p99), _more(each.p99 - each.base_p99), f"{each.p99_ratio:.2f}"),
    ]
    strong = ' class="strong"' if each.operation in (ALL_JSON, ALL_FIRST) else ""
    return f"<tr{strong}>{names}{_numbers(numbers)}</tr>"


# --- one endpoint -----------------------------------------------------------------------------


def _endpoint(endpoint: Endpoint, summary: Summary) -> Iterator[str]:
    if len(summary.endpoints) > 1:
        url = f'<span class="soft">{escape(endpoint.url)}</span>'
        yield f'<h2 class="endpoint">{escape(endpoint.name)} {url}</h2>'
    yield from _tiles(endpoint)
    yield from _charts(endpoint)
    yield from _failures(endpoint.errors)
    yield from _operations(endpoint.rows)
    if endpoint.refusals:
        yield "<section><h2>Mcp-Proxy-Reason</h2><p class='soft'>What the proxy said itself, by word.</p><dl>"
        for word, count in endpoint.refusals.items():
            yield f"<div><dt>{escape(word)}</dt><dd>{count:,}</dd></div>"
        yield "</dl></section>"


def _tiles(endpoint: Endpoint) -> Iterator[str]:
    calls = endpoint.calls
    yield '<div class="tiles">'
    for value, name, style in (
        (f"{endpoint.answers:,}", "right answers", ""),
        (f"{endpoint.failures:,}", "failures", "bad" if endpoint.failures else "good"),
        (f"{endpoint.failed_posts:,}", "failed POSTs", "bad" if endpoint.failed_posts else "good"),
        (f"{endpoint.waits:,}", "told to wait", "warn" if endpoint.waits else ""),
        (f"{endpoint.rate:.0f}/s", "rate", ""),
        (_time(calls.p50), "p50 of calls", ""),
        (_time(calls.p99), "p99 of calls", ""),
        (f"{endpoint.generator_cpu:.0%}", "generator's core", ""),
    ):
        yield f'<div class="tile {style}"><b>{escape(value)}</b>{escape(name)}</div>'
    yield "</div>"


def _charts(endpoint: Endpoint) -> Iterator[str]:
    if not endpoint.history:
        return
    by_second = {moment.second: moment for moment in endpoint.history}
    seconds = [by_second.get(number) for number in range(max(by_second) + 1)]
    whole = seconds[:-1] or seconds  # the last second is hardly ever a whole one
    rate = chart(
        "Each second",
        [
            Line("answers", "answers", [at.answers if at else 0 for at in whole]),
            Line("users", "users", [at.users if at and at.users else None for at in whole]),
            Line("failures", "failures", [at.failures if at else 0 for at in whole]),
        ],
        "",
    )
    times = chart(
        "Time of calls",
        [
            Line("p99", "p99", [_chart_ms(at.p99 if at else None) for at in whole]),
            Line("p50", "p50", [_chart_ms(at.p50 if at else None) for at in whole]),
        ],
        " ms",
    )
    if rate or times:
        yield f'<section class="charts">{rate}{times}</section>'


def _chart_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _operations(rows: Sequence[Row]) -> Iterator[str]:
    yield '<section><h2>Operations</h2><div class="wide"><table><thead><tr><th>Operation</th>'
    heads = ("answers", "/s", "failed", "waited", "p50", "p90", "p99", "max")
    yield "".join(f'<th class="number">{head}</th>' for head in heads)
    yield '<th class="number">as scheduled p99</th><th class="number">first event p50 / p99</th>'
    yield '<th class="number">gap p50 / p99</th></tr></thead>'
    for kind, title in _KINDS.items():
        ours = [row for row in rows if row.kind == kind]
        if ours:
            yield f'<tr><th class="group" colspan="12">{escape(title)}</th></tr>'
            yield from map(_operation, ours)
    yield "</table></div></section>"


def _operation(row: Row) -> str:
    failed = f'<td class="number bad">{row.failures:,}</td>' if row.failures else '<td class="number">0</td>'
    waited = f"{row.waits:,}" if row.waits else ""
    times = [_time(row.time.p50), _time(row.time.p90), _time(row.time.p99), _time(row.time.max)]
    return (
        f"<tr><td>{escape(row.name)}</td>{_numbers([f'{row.answers:,}', f'{row.rate:.1f}'])}{failed}"
        f"{_numbers([waited, *times, _time(row.late.p99), _pair(row.first_event), _pair(row.gap)])}</tr>"
    )


def _failures(errors: Sequence[Failure]) -> Iterator[str]:
    if not errors:
        return
    yield '<section><h2>Failures</h2><table><thead><tr><th class="number">Count</th>'
    yield "<th>Operation</th><th>Reason</th></tr></thead>"
    for failure in errors:
        examples = "".join(f"<li>{escape(example)}</li>" for example in failure.examples)
        more = f"<details><summary>examples</summary><ul>{examples}</ul></details>" if examples else ""
        yield f'<tr><td class="number bad">{failure.count:,}</td><td>{escape(failure.operation)}</td>'
        yield f"<td>{escape(failure.reason)}{more}</td></tr>"
    yield "</table></section>"


# --- the rest ---------------------------------------------------------------------------------


def _during(summary: Summary) -> Iterator[str]:
    during = summary.during
    if during is not None:
        yield f"<section><h2>Meanwhile</h2><p><code>{escape(during.command)}</code></p>"
        yield f"<pre>{escape(during.output or 'It printed nothing.')}</pre></section>"


def _about(summary: Summary) -> Iterator[str]:
    yield '<section><h2>How it was measured</h2><dl class="settings">'
    for name, value in summary.settings.items():
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
    yield "</dl><ul>"
    yield from (f"<li>{escape(note)}</li>" for note in summary.notes)
    yield '</ul><dl class="terms">'
    yield from (f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in _TERMS)
    yield "</dl></section>"


def _numbers(texts: Iterable[str]) -> str:
    return "".join(f'<td class="number">{escape(text)}</td>' for text in texts)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(seconds)


def _pair(times: Times) -> str:
    return "" if times.p50 is None else f"{_time(times.p50)} / {_time(times.p99)}"


def _more(seconds: float) -> str:
    return f"{_MINUS if seconds < 0 else '+'}{milliseconds(abs(seconds))}"
