"""Lines over time, as SVG inside a page. Pure: text out.

Rules of this file: colours are the page's, by class; a chart is readable without its colours, since every
line is named at its end. Each point says its values when somebody points at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 720
HEIGHT: Final = 190
_LEFT: Final = 56
_RIGHT: Final = 70
_TOP: Final = 12
_BOTTOM: Final = 26
_POINTS: Final = 240
"""More would not be seen; seconds are taken together."""


class Line(NamedTuple):
    name: str
    style: str
    """CSS class."""
    values: Sequence[float | None]
    """One per second; None breaks the line."""


def chart(title: str, lines: Sequence[Line], unit: str) -> str:
    """Empty if there is nothing to draw."""
    seconds = max((len(line.values) for line in lines), default=0)
    highest = max((value for line in lines for value in line.values if value is not None), default=0.0)
    if seconds < 2 or highest <= 0:
        return ""
    top, step = _scale(highest)
    parts = [
        f"<figure><figcaption>{escape(title)}</figcaption>",
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_grid(top, step, seconds, unit),
    ]
    ends: list[tuple[float, Line]] = []
    for line in lines:
        folded = _folded(line.values)
        points = [
            (_x(index, len(folded)), _y(value, top)) if value is not None else None
            for index, value in enumerate(folded)
        ]
        parts += [f'<path class="line {line.style}" d="{_path(points)}"/>']
        last = next((point for point in reversed(points) if point is not None), None)
        if last is not None:
            ends.append((last[1], line))
    parts += _names(ends)
    return "".join([*parts, "</svg></figure>"])


def _grid(top: float, step: float, seconds: int, unit: str) -> list[str]:
    parts = []
    for number in range(round(top / step) + 1):
        value = number * step
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="axis end" x="{_LEFT - 6}" y="{y + 4:.1f}">{value:g}{unit}</text>')
    for number in range(5):
        second = (seconds - 1) * number / 4
        x = _x(number, 5)
        parts.append(f'<text class="axis mid" x="{x:.1f}" y="{HEIGHT - 8}">{second:.0f} s</text>')
    return parts


def _names(ends: list[tuple[float, Line]]) -> list[str]:
    """At the ends of their lines, moved apart where these are close."""
    parts, lowest = [], -math.inf
    x = WIDTH - _RIGHT + 6
    for y, line in sorted(ends, key=lambda end: end[0]):
        lowest = max(y + 4, lowest + 13)
        name = escape(line.name)
        parts.append(f'<text class="name {line.style}" x="{x}" y="{lowest:.1f}">{name}</text>')
    return parts


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    words, is_drawing = [], False
    for point in points:
        if point is None:
            is_drawing = False
            continue
        words.append(f"{'L' if is_drawing else 'M'}{point[0]:.1f} {point[1]:.1f}")
        is_drawing = True
    return " ".join(words)


def _folded(values: Sequence[float | None]) -> list[float | None]:
    """As many points as can be seen: of those that fall together the highest."""
    width = math.ceil(len(values) / _POINTS)
    groups = (values[start : start + width] for start in range(0, len(values), width))
    return [max((value for value in group if value is not None), default=None) for group in groups]


def _x(index: int, count: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * index / max(1, count - 1)


def _y(value: float, top: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - value / top)


def _scale(highest: float) -> tuple[float, float]:
    """The end of the axis, and its steps: 1, 2 or 5 of some power of ten."""
    power = 10 ** math.floor(math.log10(highest / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 4 >= highest)
    return math.ceil(highest / step) * step, step
