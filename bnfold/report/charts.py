"""Curves and histograms as SVG text, in the colours of the page.

A chart has a fixed drawing area that scales with the page; where `svg` draws bars beside text in a table, this draws
figures that stand alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 36
_TICKS = 5

Numbers = Sequence[float]


@dataclass(frozen=True)
class Series:
    """Points `(x, y)` in the page's colour `colour`, 0 … 7, drawn as a line, as dots, or as a line with its area."""

    x: Numbers
    y: Numbers
    colour: int
    kind: str = "line"


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` along an axis; `log` takes powers of ten for its ticks, `whole` whole numbers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @classmethod
    def around(cls, values: Numbers, *, log: bool = False, whole: bool = False) -> Axis:
        """The axis that shows all finite values; of a logarithmic one those above 0."""
        seen = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = min(seen, default=1.0 if log else 0.0), max(seen, default=1.0)
        if log:
            return cls(low, max(high, low * 2), log)
        return cls(low, high if high > low else low + 1.0, whole=whole)

    def at(self, value: float) -> float:
        """The share of the axis where a value lies, 0 … 1 if it is on it."""
        if self.log:
            return math.log10(max(value, 1e-300) / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the axis and their labels."""
        # Of a short stretch powers of ten say too little.
        if self.log and self.high >= 5 * self.low:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            factors = (1,) if len(powers) > 1 else (1, 2, 5)
            values = [f * 10.0**power for power in range(powers.start - 1, powers.stop) for f in factors]
            return [(value, f"{value:g}") for value in values if self.low * 0.999 <= value <= self.high * 1.001]
        step = max(_round_step((self.high - self.low) / _TICKS), 1.0 if self.whole else 0.0)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, f"{i * step:.6g}") for i in range(first, last + 1)]


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    label: str,
    log_x: bool = False,
    log_y: bool = False,
    whole_x: bool = False,
) -> str:
    """One figure of all series on common axes; `label` says what it shows to who can't see it."""
    across = Axis.around([x for one in series for x in one.x], log=log_x, whole=whole_x)
    up = Axis.around([y for one in series for y in one.y], log=log_y)
    parts = [*_frame(across, up, x_label, y_label), *(_drawn(one, across, up) for one in series)]
    role = f'role="img" aria-label="{escape(label, quote=True)}"'
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" {role}>{"".join(parts)}</svg>'


def _frame(across: Axis, up: Axis, x_label: str, y_label: str) -> list[str]:
    """Grid lines, their labels, and what the axes are."""
    parts = []
    bottom = HEIGHT - _BOTTOM
    for value, text in up.ticks():
        y = _y(up, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in across.ticks():
        x = _x(across, value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="translate(10 {(_TOP + bottom) / 2}) rotate(-90)"'
    parts.append(f'<text class="tick" {turned} text-anchor="middle">{escape(y_label)}</text>')
    return parts


def _drawn(one: Series, across: Axis, up: Axis) -> str:
    points = [
        (_x(across, x), _y(up, y))
        for x, y in zip(one.x, one.y, strict=True)
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not across.log) and (y > 0 or not up.log)
    ]
    colour = f"var(--s{one.colour % 8})"
    if one.kind == "dots":
        return "".join(f'<circle cx="{x}" cy="{y}" r="2" style="fill:{colour};opacity:.7"/>' for x, y in points)
    path = " ".join(f"{x},{y}" for x, y in points)
    line = f'<polyline points="{path}" style="fill:none;stroke:{colour};stroke-width:1.75"/>'
    if one.kind != "area" or not points:
        return line
    bottom = HEIGHT - _BOTTOM
    closed = f"{points[0][0]},{bottom} {path} {points[-1][0]},{bottom}"
    return f'<polygon points="{closed}" style="fill:{colour};opacity:.22"/>{line}'


def _x(axis: Axis, value: float) -> float:
    return round(_LEFT + axis.at(value) * (WIDTH - _LEFT - _RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(HEIGHT - _BOTTOM - axis.at(value) * (HEIGHT - _TOP - _BOTTOM), 1)


def _round_step(step: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
