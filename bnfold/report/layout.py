"""The one look of all tables: no frame, one rule under the head, names that wrap where a person would break them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bnfold.errors import printable

NUMBERS = {
    "channels", "before", "after", "cost before", "error", "limit", "ratio", "median µs", "p10", "p90",
}  # fmt: skip
# A name is not squeezed below this: it would no longer be read as one.
NARROW = 16


@dataclass(frozen=True)
class Name:
    """A name or a route that breaks before an arrow, within a name after a separator, and elsewhere only if it must."""

    text: str
    style: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max((cell_len(word) for word in words(self.text)), default=0)
        return Measurement(min(longest, NARROW), cell_len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in wrapped(self.text, options.max_width):
            yield Text(line, style=self.style)


def words(text: str) -> list[str]:
    """`a/b ← c d` → `a/b`, `← c`, `d`: an arrow stays with what it leads to."""
    return re.findall(r"(?:[←→+] )?\S+", text)


def pieces(word: str) -> list[str]:
    """`a/b_c` → `a/`, `b_`, `c`: where a word that is too long for a line may be broken."""
    return [piece for piece in re.split(r"(?<=[/._:,])(?=[^\s/._:,])", word) if piece]


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, broken between words, within them after a separator if need be."""
    lines = [""]
    for word in words(text):
        joined = f"{lines[-1]} {word}".lstrip()
        if cell_len(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for piece in pieces(word):
            if cell_len(lines[-1] + piece) > width and lines[-1]:
                lines.append("")
            lines[-1] += piece
            while cell_len(lines[-1]) > width:
                lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return lines


def grid(*columns: str, title: str | None = None) -> Table:
    """A table in the one style of this package."""
    table = Table(
        box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    for column in columns:
        number = column in NUMBERS
        table.add_column(column, overflow="fold", justify="right" if number else "left", no_wrap=number)
    return table


def count(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number_of_bytes: int) -> str:
    """`1234567` → `1.2 MB`."""
    number = float(number_of_bytes)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def plain(text: str) -> str:
    """Text that rich prints as it is, and that a terminal does nothing with but show."""
    return escape(printable(text))
