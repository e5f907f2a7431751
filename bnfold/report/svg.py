"""Plots as SVG text that takes its colours from the page and its width from where it stands.

All lengths across are percentages, so that a plot needs no script and no fixed width: the same text is sharp on a
phone, on a wide screen and on paper. Classes are in `templates/style.css`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

HEIGHT = 26


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis of ratios to a limit: whole decades, the limit 1 among them."""

    low: int
    high: int

    @classmethod
    def around(cls, ratios: Sequence[float | None]) -> LogAxis:
        """The axis that shows these ratios: at least 0.01 to 10, at most nine decades."""
        seen = [math.log10(r) for r in ratios if r is not None and math.isfinite(r) and r > 0]
        high = min(max(1, math.ceil(max(seen, default=0) + 0.05)), 6)
        low = max(min(-2, math.floor(min(seen, default=0))), -4)
        return cls(low, high)

    def at(self, ratio: float | None) -> float:
        """Where a ratio lies, in percent of the width; what is off the axis lies at its end."""
        if ratio is None or ratio == math.inf:
            return 100.0
        if ratio <= 0:
            return 0.0
        return round(min(max(100 * (math.log10(ratio) - self.low) / (self.high - self.low), 0.0), 100.0), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions and labels of the decades."""
        names = {0: "limit", 1: "10×", 2: "100×"}
        return [
            (self.at(10.0**power), names.get(power, f"{10.0**power:g}" if power < 0 else f"10{_superscript(power)}×"))
            for power in range(self.low, self.high + 1)
        ]


def scale(axis: LogAxis) -> str:
    """The axis with its labels."""
    parts = []
    for position, label in axis.ticks:
        if 86 < position <= 96 and label != "limit":
            continue  # the last label needs the room
        anchor = "start" if position < 4 else "end" if position > 96 else "middle"
        kind = "tick limit" if label == "limit" else "tick"
        parts.append(f'<text class="{kind}" x="{position}%" y="14" text-anchor="{anchor}">{escape(label)}</text>')
    return element(18, "", parts)


def ratio(axis: LogAxis, value: float | None, status: str, label: str, marks: Mapping[str, float | None]) -> str:
    """A bar from the left to `value`, the limit as a line, and thin marks by class name."""
    parts = [line(position, "grid") for position, name in axis.ticks if name != "limit"]
    middle = HEIGHT / 2
    if value is None or value > 0:
        parts.append(
            f'<rect class="bar {status}" x="0" y="{middle - 5}" width="{axis.at(value)}%" height="10" rx="2"/>'
        )
    parts += [
        f'<circle class="{name}" cx="{axis.at(mark)}%" cy="{middle}" r="3.5"/>'
        for name, mark in marks.items()
        if mark
    ]
    parts.append(line(axis.at(1.0), "limit"))
    return element(HEIGHT, label, parts)


def share(fraction: float, label: str, kind: str = "share") -> str:
    """A bar that is filled to `fraction` of its width."""
    width = round(100 * min(max(fraction, 0.0), 1.0), 2)
    parts = [
        '<rect class="track" x="0" y="4" width="100%" height="10" rx="2"/>',
        f'<rect class="{kind}" x="0" y="4" width="{width}%" height="10" rx="2"/>',
    ]
    return element(18, label, parts)


def stack(parts: Mapping[str, float], label: str) -> str:
    """One bar of segments in proportion to the values, numbered in the colours `s0`, `s1` …"""
    total = sum(parts.values()) or 1.0
    drawn, start = [], 0.0
    for index, value in enumerate(parts.values()):
        width = 100 * value / total
        drawn.append(f'<rect class="s{index % 8}" x="{start:.2f}%" y="2" width="{width:.2f}%" height="18"/>')
        start += width
    return element(22, label, drawn)


def line(position: float, kind: str) -> str:
    """A vertical line through a plot of the usual height, at `position` percent of its width."""
    return f'<line class="{kind}" x1="{position}%" x2="{position}%" y1="0" y2="{HEIGHT}"/>'


def element(height: float, label: str, parts: Sequence[str]) -> str:
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg width="100%" height="{height:g}" {role}>{"".join(parts)}</svg>'


def _superscript(number: int) -> str:
    return "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(number))
