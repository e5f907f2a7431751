"""What training shows while it runs: a bar on a terminal, one line an epoch elsewhere, nothing where
asked.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: mean training loss, score in eval mode with 1 the best, seconds since the start."""

    number: int
    epochs: int
    loss: float
    score: float
    seconds: float

    def line(self, label: str) -> str:
        """The epoch for a person, with the score called `label`."""
        return f"epoch {self.number}/{self.epochs}  loss {self.loss:.4f}  {label} {self.score:.2%}"


class Progress:
    """What the training loop calls; this one shows nothing but hands every epoch to `report` if there is
    one.
    """

    def __init__(self, report: Callable[[Epoch], None] | None = None) -> None:
        self._report = report

    def step(self, done: int, total: int) -> None:
        """`done` of all the `total` optimizer steps are taken."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is finished."""
        if self._report:
            self._report(epoch)


@contextlib.contextmanager
def shown(report: Callable[[Epoch], None] | None, label: str, *, quiet: bool) -> Iterator[Progress]:
    """The display for one training: `report` alone where given, else nothing, a bar or lines on stderr.

    `label` says what the score is.
    """
    if report or quiet:
        yield Progress(report)
    elif sys.stderr.isatty():
        with _bar(label) as bar:
            yield bar
    else:
        yield Progress(lambda epoch: print(epoch.line(label), file=sys.stderr, flush=True))


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("training"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.description}"),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        class Bar(Progress):
            def step(self, done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            def epoch(self, epoch: Epoch) -> None:
                bar.update(task, description=epoch.line(label))

        yield Bar()
