"""An audit as tables for a terminal and as one HTML page, both made from its JSON document."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from bnfold.files import replacing
from bnfold.report import html, svg
from bnfold.report.layout import Name, count, grid, plain
from bnfold.report.tables import Renderable, named

Document = Mapping[str, Any]

SHOWN = 12
DRIFT = ("drifted", "drifted-channels")
# The ends of the plots' axes: shifts in σ, linear, and ratios of variances, logarithmic.
SHIFTS, RATIOS = 1.5, 8.0
SHIFT_LIMIT, RATIO_LIMIT = 0.25, 2.0


def tables(document: Document) -> Iterator[Renderable]:
    """Findings, layers by their drift, accuracy, and the sum of it."""
    yield from _findings(document["findings"])
    drift = document["drift"]
    if drift is not None:
        yield from _layers(drift)
    remedies = {finding["code"]: finding["remedy"] for finding in document["findings"]}
    if remedies:
        yield from (f"[yellow]{code}[/]: {plain(text)}" for code, text in remedies.items())
        yield ""
    yield from _accuracy(document)
    if document.get("output"):
        recalibrated = f"{count(len(document['recalibrated']), 'BatchNorm')} recalibrated"
        negated = ", a minus sign in front of the input" if document.get("negated") else ""
        yield f"written: {plain(document['output'])}, {recalibrated}{negated}"
    waived = Counter(finding["code"] for finding in document["allowed"])
    if waived:
        yield "allowed: " + ", ".join(f"{number} {code}" for code, number in waived.items())
    yield summary(document)


def summary(document: Document) -> str:
    """`9 BatchNorms: nothing found; drift 0.03σ over 359 examples`, coloured."""
    found = len(document["findings"])
    what = f"[yellow]{count(found, 'finding')}[/]" if found else "[green]nothing found[/]"
    text = f"{count(document['batch_norms'], 'BatchNorm')}: {what}"
    drift = document["drift"]
    return text if drift is None else f"{text}; drift {drift['score']:.2f}σ over {count(drift['examples'], 'example')}"


def _findings(found: Sequence[Document]) -> Iterator[Renderable]:
    """Those that the table of layers does not show."""
    found = [finding for finding in found if finding["code"] not in DRIFT]
    if not found:
        return
    table = grid("BatchNorm", "finding", "what was seen")
    for finding in found[:SHOWN]:
        table.add_row(Name(named(finding["module"])), f"[yellow]{finding['code']}[/]", Name(finding["detail"]))
    if len(found) > SHOWN:
        table.caption = f"\n… and {len(found) - SHOWN} more; --json lists them all"
        table.caption_justify = "left"
    yield table
    yield ""


def _layers(drift: Document) -> Iterator[Renderable]:
    layers = drift["layers"]
    if layers:
        table = grid("BatchNorm", "drift", "mean\noff by", "variance\noff by", "channels\nflagged", "finding")
        for layer in layers[:SHOWN]:
            figures = (f"{layer['distance']:.2f}σ", f"{layer['shift']:.2f}σ", f"factor {layer['ratio']:.2f}")
            code = DRIFT[0] if layer["drifted"] else DRIFT[1] if layer["flagged"] else ""
            flagged = f"{len(layer['flagged'])} of {layer['channels']}"
            table.add_row(Name(named(layer["name"])), *figures, flagged, Name(code, "yellow"))
        for column in table.columns[1:5]:
            column.justify, column.no_wrap = "right", True
        if len(layers) > SHOWN:
            table.caption = f"\n… and {len(layers) - SHOWN} that drifted less"
            table.caption_justify = "left"
        yield table
        yield ""
    hidden = drift["unobserved"]
    for site in hidden[:SHOWN]:
        yield f"not observable: {plain(site['name'])}: {plain(site['reason'])}"
    if len(hidden) > SHOWN:
        yield f"… and {len(hidden) - SHOWN} more that are not observable"


def _accuracy(document: Document) -> Iterator[str]:
    before, after = document["accuracy"]["before"], document["accuracy"]["after"]
    if before is not None:
        yield f"accuracy {before:.2%}" + (f" → {after:.2%} once recalibrated" if after is not None else "")
    advice = _advice(document)
    if advice is not None:
        yield f"[yellow]{advice}[/]"


def _advice(document: Document) -> str | None:
    """What speaks against the recalibrated model."""
    before, after = document["accuracy"]["before"], document["accuracy"]["after"]
    if not document["recalibrated"]:
        return None
    if before is None or after is None:
        return "without labels it is not known whether the recalibrated model predicts better"
    if after < before:
        negatives = "" if document.get("negated") else "; are these data negatives? then give --negate"
        return f"recalibration makes the predictions worse: keep the model as it was{negatives}"
    return "recalibration does not help" if after == before < 1 else None


def write(document: Document, path: str | os.PathLike[str]) -> None:
    """Write the audit as one HTML page. Raises `OutputError`, or `UsageError` without jinja2."""
    text = page(document)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(document: Document) -> str:
    """The audit as one HTML page that needs nothing but itself."""
    drift = document["drift"] or {"layers": [], "unobserved": [], "examples": 0, "score": 0.0}
    remedies = {finding["code"]: finding["remedy"] for finding in document["findings"]}
    return html.render("audit.html", {
        "title": PurePath(document["model"]).name,
        "document": document,
        "found": len(document["findings"]),
        "others": [finding for finding in document["findings"] if finding["code"] not in DRIFT],
        "remedies": remedies,
        "facts": list(_facts(document)),
        "layers": [{**layer, **_plots(layer)} for layer in drift["layers"]],
        "axes": {"shift": _axis(_shift_ticks()), "ratio": _axis(_ratio_ticks())},
        "unobserved": drift["unobserved"],
        "raw": json.dumps(document, indent=2, ensure_ascii=False),
    })  # fmt: skip


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    yield str(document["batch_norms"]), "BatchNorms"
    yield str(len(document["findings"])), "findings"
    drift = document["drift"]
    if drift is not None:
        yield f"{drift['score']:.2f}σ", "drift: the worst layer's median channel"
        yield f"{drift['examples']:,}", "examples"
    before, after = document["accuracy"]["before"], document["accuracy"]["after"]
    if before is not None:
        yield f"{before:.2%}", "of the labels predicted"
    if after is not None:
        yield f"{after:.2%}", "once recalibrated" + (": worse" if after < before else "")


def _plots(layer: Document) -> dict[str, str]:
    kind = "mismatch" if layer["drifted"] else "inconclusive" if layer["flagged"] else "pass"
    shifts = [_shift_at(value) for value in layer["shifts"]]
    ratios = [_ratio_at(value) for value in layer["ratios"]]
    label = f"median channel {layer['shift']:.2f} σ, variance by a factor of {layer['ratio']:.2f}"
    return {
        "kind": kind,
        "shift_plot": _box(shifts, _shift_at(SHIFT_LIMIT), kind, f"shift: {label}"),
        "ratio_plot": _box(ratios, _ratio_at(RATIO_LIMIT), kind, f"ratio: {label}"),
    }


def _box(quantiles: Sequence[float], limit: float, kind: str, label: str) -> str:
    """A line from the 5 % to the 95 % channel, a bar from the 25 % to the 75 %, a dot at the median; the limit."""
    middle = svg.HEIGHT / 2
    parts = [svg.line(0.0, "grid"), svg.line(100.0, "grid")]
    if quantiles:
        low, first, median, third, high = quantiles
        parts += [
            f'<line class="whisker" x1="{low}%" x2="{high}%" y1="{middle}" y2="{middle}"/>',
            f'<rect class="bar {kind}" x="{first}%" y="{middle - 5}" width="{third - first:.2f}%" height="10" rx="2"/>',
            f'<circle class="median" cx="{median}%" cy="{middle}" r="3"/>',
        ]
    parts.append(svg.line(limit, "limit"))
    return svg.element(svg.HEIGHT, label, parts)



def _shift_at(value: float) -> float:
    return round(100.0 * min(value / SHIFTS, 1.0), 2)


def _ratio_at(value: float) -> float:
    return round(100.0 * min(math.log(max(value, 1.0)) / math.log(RATIOS), 1.0), 2)


def _shift_ticks() -> list[tuple[float, str]]:
    return [(_shift_at(value), f"{value:g}") for value in (0, 0.25, 0.5, 1, 1.5)]


def _ratio_ticks() -> list[tuple[float, str]]:
    return [(_ratio_at(value), str(value)) for value in (1, 2, 4, 8)]


def _axis(ticks: Sequence[tuple[float, str]]) -> str:
    texts = [f'<text class="tick" x="{at}%" y="14" text-anchor="middle">{text}</text>' for at, text in ticks]
    return svg.element(18, "", texts)

