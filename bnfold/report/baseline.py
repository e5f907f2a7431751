"""Baselines: the error ratios of a verification that was good, kept in a file and held against later ones.

    regression:  ratio > factor · max(ratio of the baseline, 0.1)

A baseline holds ratios to the limit and what they were measured with, never an output: it can be committed beside a
model that is secret. A tenth of the limit is what rounding on another machine may give, so below it nothing counts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bnfold.errors import InputError, UsageError
from bnfold.files import reason, replacing
from bnfold.report.findings import Document

SCHEMA = "bnfold.baseline/1"
FACTOR = 2.0
FLOOR = 0.1
# What decides which inputs were compared: ratios on other inputs are others.
SETTINGS = ("inputs", "samples", "seed", "dims")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a baseline. Raises `InputError` for a file that is missing or no baseline."""
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such baseline; write it with --update-baseline") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read: {reason(error)}; check its permissions") from error
    except ValueError as error:  # not JSON, or not text at all
        raise InputError(f"{path}: is no baseline, but something else; write it with --update-baseline") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not _sound(found):
        raise InputError(f"{path}: is no baseline of this version of bnfold; write it with --update-baseline")
    return found


def save(document: Document, path: str | os.PathLike[str]) -> None:
    """Write the ratios of a verification that passed as a baseline. Raises `UsageError` for any other."""
    if document["status"] != "pass":
        raise UsageError(f"{path}: a baseline is made of a verification that passes; this is {document['status']}")
    content = {
        "schema": SCHEMA,
        "settings": {key: document["settings"].get(key) for key in SETTINGS},
        "onnxruntime": document["settings"].get("onnxruntime"),
        "ratios": dict(sorted(_ratios(document))),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(
    document: Document, known: Mapping[str, Any], path: str | os.PathLike[str], factor: float = FACTOR
) -> dict[str, Any]:
    """The document with what the baseline says about it; a regression makes its exit code 1 where it was 0.

    Raises `InputError` if the baseline was measured on other inputs, or of nothing that was compared now.
    """
    if document["status"] == "pass":  # one that ended early used fewer inputs than it was asked for
        check_settings(known, {key: document["settings"].get(key) for key in SETTINGS}, path)
    ratios, before = dict(_ratios(document)), known["ratios"]
    if ratios and not ratios.keys() & before.keys():
        raise InputError(f"{path}: is the baseline of other outputs, such as {min(before)}; use --update-baseline")
    regressions = [
        {"where": where, "before": before[where], "now": now}
        for where, now in ratios.items()
        if where in before and (now is None or now > factor * max(before[where], FLOOR))
    ]
    found = {
        "file": os.fspath(path),
        "factor": factor,
        "compared": len(ratios.keys() & before.keys()),
        "missing": sorted(before.keys() - ratios.keys()),
        "regressions": regressions,
    }
    code = 1 if regressions and document["exit_code"] == 0 else document["exit_code"]
    return {**document, "exit_code": code, "baseline": found}


def check_settings(known: Mapping[str, Any], settings: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise `InputError` if the baseline was measured with other settings than these."""
    for key, now in settings.items():
        was = known["settings"].get(key)
        if was != now:
            raise InputError(f"{path}: was measured with {key} {was}, now with {now}; use it, or --update-baseline")


def check_factor(factor: float) -> None:
    """Raise `UsageError` for a factor that would allow nothing or everything."""
    if not (math.isfinite(factor) and factor >= 1.0):
        raise UsageError(f"the baseline's factor is {factor:g}; give a number from 1")


def _ratios(document: Document) -> Iterator[tuple[str, float | None]]:
    for cell in document["cells"]:
        yield f"output {cell['output']!r} on {cell['provider']}, {cell['level']}", _rounded(cell["ratio"])
    for layer in document.get("layers") or ():
        if layer["status"] != "inconclusive":  # it was not measured
            yield f"layer {layer['node']!r}", _rounded(layer["ratio"])


def _rounded(ratio: float | None) -> float | None:
    """Four digits: what is committed should not change with the last bits."""
    return None if ratio is None else float(f"{ratio:.4g}")


def _sound(found: Mapping[str, Any]) -> bool:
    ratios = found.get("ratios")
    numbers = isinstance(ratios, dict) and all(isinstance(ratio, (int, float)) for ratio in ratios.values())
    return numbers and bool(ratios) and isinstance(found.get("settings"), dict)
