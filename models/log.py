"""The folder of one training: what a report shows of it, and what it can be continued from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bnfold.errors import InputError, ModelError, OutputError, UsageError
from bnfold.files import reason, replacing
from bnfold.models.progress import Epoch
from bnfold.models.state import read_state
from bnfold.models.watch import Record

METRICS, STATISTICS, STATE, MODEL = "metrics.csv", "statistics.csv", "state.safetensors", "model.safetensors"


class Log:
    """A folder with `metrics.csv`, one row an epoch; `statistics.csv`, one a BN and recorded step; the state after the
    last epoch; and in the end the checkpoint.

    `settings` are all that decides what is learnt. With `resume` the state that is there is continued, if there is
    one. Raises `UsageError` where a state is there without `resume`, or made with other settings, `OutputError` where
    the folder can't be made, `ModelError` or `InputError` for damaged files.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
        self.folder, self.settings = folder, settings
        self.records: list[Record] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: can't be made: {reason(error)}; choose another folder") from error
        self.resumed = self.state.exists()
        if self.resumed:
            if not resume:
                raise UsageError(f"{folder} already holds a training; give --resume to continue it, or another folder")
            self._check(read_state(self.state).get("settings"))
            self.records = read_records(folder)

    @property
    def state(self) -> Path:
        """Where the state is."""
        return self.folder / STATE

    def write(self, history: Sequence[Epoch], records: Sequence[Record]) -> None:
        """Write both tables anew, so that a continued training leaves no row twice."""
        for name, rows in ((METRICS, history), (STATISTICS, records)):
            if rows:
                with replacing(self.folder / name) as temporary:
                    temporary.write_text(_table(rows), encoding="utf-8")

    def _check(self, saved: Any) -> None:
        if not isinstance(saved, dict):
            raise ModelError(f"{self.state}: not the state of a training; choose another folder")
        for name in {**saved, **self.settings}:
            before, now = saved.get(name), self.settings.get(name)
            if before != now:
                raise UsageError(f"{self.folder} was begun with {name} {before}, not {now}; continue it with the same")


def read_metrics(folder: Path) -> list[Epoch]:
    """The epochs of a training; raises `InputError` where there is no such table."""
    return [Epoch(**row) for row in _read(folder / METRICS, Epoch)]


def read_records(folder: Path) -> list[Record]:
    """What was recorded of every BN; raises `InputError` where the table is damaged, gives nothing where none is."""
    if not (folder / STATISTICS).exists():
        return []
    return [Record(**row) for row in _read(folder / STATISTICS, Record)]


def _table(rows: Sequence[Epoch] | Sequence[Record]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _read(path: Path, kind: type[Epoch] | type[Record]) -> list[dict[str, Any]]:
    types = {"int": int, "float": float, "str": str}
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if reader.fieldnames != [field.name for field in fields(kind)]:
                raise ValueError("another table")
            return [{field.name: types[str(field.type)](row[field.name]) for field in fields(kind)} for row in reader]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the folder that `bnfold train --log` wrote") from None
    except (OSError, ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged, or not written by `bnfold train --log`") from error
