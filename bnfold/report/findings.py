"""What a verification found, as the rows that JUnit, SARIF and Markdown share: read from its JSON document alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnfold.errors import InputError
from bnfold.files import reason

Document = Mapping[str, Any]
Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Rule:
    """A kind of finding: its id is part of what users write filters for and never changes."""

    title: str
    help: str


RULES: dict[str, Rule] = {
    "interface": Rule(
        "another interface",
        "Names, order, element types or shapes of the inputs or outputs differ: the candidate is called differently.",
    ),
    "certificate": Rule(
        "not the fold that it claims to be",
        "Folding the reference again does not give this candidate bit for bit, or a folded weight is wrong.",
    ),
    "layer": Rule(
        "a layer computes something else",
        "Given the same input, this layer of the candidate is further from float64 than rounding explains.",
    ),
    "output": Rule(
        "an output is out of tolerance",
        "The error against float64 exceeds what the reference itself, or rounding of its weights, is off by.",
    ),
    "limit": Rule("beyond the given tolerance", "A value is beyond the extra limit that --rtol and --atol gave."),
    "class": Rule("another class", "The best class differs where the float64 margin decides it."),
    "not-finite": Rule("new NaN or infinity", "A value is NaN or infinite where the reference's is finite."),
    "execution": Rule("the candidate does not run", "The candidate fails on inputs on which the reference runs."),
    "regression": Rule(
        "worse than the baseline",
        "An error ratio has grown by more than the allowed factor, although it is still within tolerance.",
    ),
    "inconclusive": Rule(
        "neither proven the same nor different",
        "The verification could not have seen a fault, or could not be carried out. This is never a pass.",
    ),
    "warning": Rule("worth knowing", "Does not speak against the verdict, but limits what it says."),
}


@dataclass(frozen=True)
class Finding:
    """One thing that speaks against the candidate, or a warning; `cell` is the comparison that it belongs to.

    `layer` and `output` name what it is about; without a `cell` it is about every comparison of the output. What is
    `tabled` has its figures in the tables of comparisons and layers too.
    """

    rule: str
    message: str
    level: Level = "error"
    cell: Document | None = None
    layer: str | None = None
    output: str | None = None
    tabled: bool = False


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The verification in a file of JSON. Raises `InputError` for a file that holds none."""
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {reason(error)}; give the path of a result") from error
    except ValueError as error:  # not JSON, or not text at all
        raise InputError(f"{path}: is no JSON; write it with `bnfold verify --json-file`") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: holds no result; write it with `bnfold verify --json-file`")
    try:
        return verification(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def verification(document: Document) -> dict[str, Any]:
    """The `bnfold.verify` document in a result: itself, or the verdict of an `optimize` that verified.

    Raises `InputError` for any other document.
    """
    name = str(document.get("schema", ""))
    if name.startswith("bnfold.verify/"):
        return {**document, "findings": document.get("findings", _unsorted(document))}
    if name.startswith("bnfold.optimize/"):
        verdict = document.get("verdict")
        if not isinstance(verdict, Mapping):
            raise InputError("the optimize result holds no verdict: it was run with --no-verify")
        candidate = document.get("output") or "the folded model"
        rest = {"reference": document["model"], "candidate": candidate, **verdict}
        return verification({"schema": "bnfold.verify/1", **rest})
    raise InputError(f"{name or 'this'} is no result of `bnfold verify --json` or `bnfold optimize --json`")


def _unsorted(document: Document) -> list[Document]:
    """The reasons of a result that was written before findings had rules."""
    rule = "inconclusive" if document.get("status") == "inconclusive" else "output"
    nowhere = dict.fromkeys(("layer", "output", "provider", "level"))
    return [{"rule": rule, "message": message, **nowhere} for message in document.get("reasons", ())]


def outcome(document: Document) -> tuple[str, str]:
    """The status that a report is coloured by, and its words: a regression is a failure of a pass."""
    if document["status"] == "pass" and document["exit_code"] != 0:
        return "mismatch", "pass, but worse than the baseline"
    return document["status"], document["status"]


def findings(document: Document) -> list[Finding]:
    """Everything that speaks against the candidate, then the warnings."""
    return [*_errors(document), *(Finding("warning", text, "warning") for text in document["warnings"])]


def status(document: Document, cell: Document) -> str:
    """The status of one comparison: it is no pass where a reason says that the output could not show a fault."""
    doubted = document["status"] == "inconclusive" and _of(document, cell)
    return "inconclusive" if doubted and cell["status"] == "pass" else str(cell["status"])


def against(document: Document, cell: Document) -> str | None:
    """What is said against one comparison, line by line; None where it passed."""
    found = status(document, cell)
    messages = [str(entry["message"]) for entry in _of(document, cell)]
    return None if found == "pass" else "\n".join(messages) or f"{_where(cell)}: {found}"


def _of(document: Document, cell: Document) -> list[Document]:
    """What was found of this comparison, or of its output on this provider, or wherever it ran."""
    return [
        entry for entry in document["findings"]
        if entry["output"] == cell["output"] and all(entry[key] in (None, cell[key]) for key in ("provider", "level"))
    ]  # fmt: skip


def _errors(document: Document) -> Iterator[Finding]:
    cells = {(cell["provider"], cell["level"], cell["output"]): cell for cell in document["cells"]}
    layers = {layer["node"]: layer for layer in document.get("layers") or ()}
    # The layer is what a user wants to know first: the outputs only show what it does.
    for entry in sorted(document["findings"], key=lambda entry: entry["rule"] != "layer"):
        cell = cells.get((entry["provider"], entry["level"], entry["output"]))
        row = {"output": cell, "layer": layers.get(entry["layer"])}.get(entry["rule"])
        # Without a ratio it is another shape or a new NaN, which only the message says.
        tabled = row is not None and row["ratio"] is not None
        yield Finding(entry["rule"], entry["message"], "error", cell, entry["layer"], entry["output"], tabled)
    baseline = document.get("baseline") or {}
    for found in baseline.get("regressions", ()):
        before, now = found["before"], found["now"]
        text = f"{found['where']}: error {before:.2g} of the limit in the baseline, now {_figure(now)}"
        yield Finding("regression", f"{text}, more than {baseline['factor']:g} times")


def _where(cell: Document) -> str:
    return f"output {cell['output']!r} on {cell['provider']}, {cell['level']}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}"
