"""What a verb shows: its result on stdout as a table or JSON, its progress on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bnfold.cli.interrupts import bounded
from bnfold.errors import printable


@dataclass(frozen=True)
class Screen:
    """The two streams, as `--json` and `-q` want them."""

    as_json: bool = False
    quiet: bool = False

    def result(self, verb: str, payload: dict[str, Any], *parts: Any) -> None:
        """Print the result once: as a JSON document, or as what rich makes of `parts`, or not at all.

        A string among the parts is rich markup: names in it are escaped.
        """
        if self.as_json:
            from bnfold.report import document

            print(json.dumps(document(verb, payload), indent=2, ensure_ascii=False))
        elif not self.quiet:
            console = _console()
            for part in parts:
                if part is not None:
                    console.print(part)

    def note(self, text: str) -> None:
        """Tell on stderr what the user should know but need not act on."""
        if not self.quiet:
            print(f"bnfold: note: {printable(text)}", file=sys.stderr)

    @contextlib.contextmanager
    def working(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show on a terminal what goes on, which can be interrupted; call the yielded function to say what."""
        from rich.console import Console

        console = Console(stderr=True)
        with bounded():
            if self.quiet or not console.is_terminal:
                yield lambda text: None
                return
            with console.status(text) as status:
                yield status.update


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        # A file or a pipe has no width of its own; names must not be cut there.
        console.width = max(console.width, 120)
    return console
