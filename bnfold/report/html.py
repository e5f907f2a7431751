"""A verification as one HTML page that needs nothing but itself: no script, no font, no image, no network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePath
from typing import Any

from bnfold import __version__
from bnfold.errors import UsageError
from bnfold.report import svg
from bnfold.report.findings import Document, findings, outcome, status

MARKS = {"pass": "✓", "mismatch": "✕", "inconclusive": "?"}
# Layers and findings shown at once; the other layers are folded away on the page.
SHOWN = 30


def require() -> None:
    """Raise `UsageError` now if a page could not be made later."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UsageError('the HTML report needs jinja2: pip install "bnfold[report]"') from error


def html(document: Document) -> str:
    """The document of a verification as a page."""
    return render("verify.html", _view(document))


def render(template: str, view: Mapping[str, Any]) -> str:
    """A page from one of this package's templates, with the plots of `bnfold.report.svg`; always valid UTF-8."""
    page = templates().get_template(template).render(version=__version__, **view)
    # The name of a file need not be UTF-8.
    return str(page).encode("utf-8", "backslashreplace").decode()


@cache
def templates() -> Any:
    """The environment of the templates, read once: a page can then be made with no file descriptor left."""
    require()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bnfold.report"),
        auto_reload=False,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["figure"] = figure
    for name in environment.list_templates():
        environment.get_template(name)
    return environment


def figure(value: float | None, digits: int = 3) -> str:
    """A number as the page prints it; None stands for what JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return "∞"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if -4 < int(exponent) < 5:
        text = f"{value:,.{max(0, digits - 1 - int(exponent))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    sign = "⁻" if exponent[0] == "-" else ""
    return f"{mantissa}·10{sign}" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in exponent[1:].lstrip("0"))


def _view(document: Document) -> dict[str, Any]:
    found = findings(document)
    against = [finding for finding in found if finding.level == "error"]
    # Further down, the outputs and layers have plots of their own.
    errors = [finding.message for n, finding in enumerate(against) if n == 0 or not finding.tabled]
    colour, word = outcome(document)
    cells = [{**cell, "status": status(document, cell)} for cell in document["cells"]]
    layers = list(document.get("layers") or ())
    seconds = {name: float(value) for name, value in (document.get("seconds") or {}).items()}
    return {
        "title": f"{PurePath(document['candidate']).name} against {PurePath(document['reference']).name}",
        "document": document,
        "status": colour,
        "mark": MARKS[colour],
        "word": word.capitalize(),
        "errors": errors,
        "shown": SHOWN,
        "early": colour == "mismatch" and not cells and not document["settings"].get("keep_going"),
        "passed": f"Every output is within tolerance: the worst error is {figure(document['ratio'], 2)} of its limit.",
        "worst": document["certificate"].get("worst_case"),
        "facts": list(_facts(document)),
        "outputs": _outputs(cells),
        "layers": _layers(layers),
        "coverage": _coverage(document["coverage"]),
        "classes": _classes(cells),
        "seconds": _seconds(seconds),
        "settings": list(_settings(document["settings"])),
        "raw": json.dumps(document, indent=2, ensure_ascii=False),
    }


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    """The few numbers at the top: a value, its unit, and what it is."""
    settings, coverage, certificate = document["settings"], document["coverage"], document["certificate"]
    if document["cells"]:
        yield figure(document["ratio"], 2), "worst error, as a share of its limit"
        samples, comparisons = settings.get("samples") or 0, len(document["cells"])
        yield str(samples), "input compared" if samples == 1 else "inputs compared"
        yield str(comparisons), f"comparison{'s' * (comparisons != 1)}: outputs × providers × levels"
    if certificate.get("folds") is not None:
        yield str(certificate["folds"]), f"BatchNorm{'s' * (certificate['folds'] != 1)} fewer than in the reference"
    if coverage.get("fraction") is not None:
        yield _percent(coverage["fraction"]), "of the activations' channels fired"


def _outputs(cells: Sequence[Document]) -> dict[str, Any] | None:
    """The comparisons, grouped by output, each with its bar; `noise` and `sensitivity` are marks on it."""
    if not cells:
        return None
    axis = svg.LogAxis.around([cell["ratio"] for cell in cells])
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        limit = cell["limit"] or 0.0
        marks = {name: (cell[name] or 0.0) / limit if limit else None for name in ("noise", "sensitivity")}
        label = f"error {figure(cell['ratio'])} of the limit"
        plot = svg.ratio(axis, cell["ratio"], cell["status"], label, marks)
        groups.setdefault(str(cell["output"]), []).append({**cell, "plot": plot})
    return {"axis": svg.scale(axis), "groups": groups}


def _layers(layers: Sequence[Document]) -> dict[str, Any] | None:
    """The changed layers, each with its bar: the worst ones in the order of the graph, and the rest."""
    if all(layer["status"] == "inconclusive" and not layer.get("reason") for layer in layers):
        return None  # there are none, or the verification ended before them
    axis = svg.LogAxis.around([layer["ratio"] for layer in layers])
    rows: list[dict[str, Any]] = []
    for layer in layers:
        checked = layer["status"] != "inconclusive"
        label = f"error {figure(layer['ratio'])} of the limit"
        plot = svg.ratio(axis, layer["ratio"], layer["status"], label, {}) if checked else ""
        rows.append({**layer, "checked": checked, "plot": plot})

    def badness(number: int) -> tuple[bool, bool, float]:
        row = rows[number]
        ratio = math.inf if row["ratio"] is None else row["ratio"]
        return row["status"] == "mismatch", not row["checked"], ratio if row["checked"] else 0.0

    worst = {*sorted(range(len(rows)), key=badness, reverse=True)[:SHOWN]}
    return {
        "axis": svg.scale(axis),
        "rows": [row for number, row in enumerate(rows) if number in worst],
        "rest": [row for number, row in enumerate(rows) if number not in worst],
        "total": len(rows),
    }


def _coverage(coverage: Document) -> dict[str, Any] | None:
    if not coverage:
        return None
    fraction = coverage.get("fraction")
    if fraction is None:
        return {**coverage, "plot": None}
    percent = _percent(fraction)
    return {**coverage, "percent": percent, "plot": svg.share(fraction, f"{percent} of the channels fired")}


def _percent(share: float) -> str:
    """`43 %`, `0.4 %`; 100 % only of all."""
    digits = 1 if 0 < share < 0.1 or 0.99 < share < 1 else 0
    return f"{math.floor(share * 1000) / 10 if digits else 100 * share:.{digits}f} %"


def _classes(cells: Sequence[Document]) -> list[dict[str, Any]]:
    return [{**cell, "best": n, "rows": cell[f"top{n}"]} for cell in cells for n in (1, 5) if cell.get(f"top{n}")]


def _seconds(seconds: Mapping[str, float]) -> dict[str, Any] | None:
    total = sum(seconds.values())
    if not total:
        return None
    rows = [{"name": name, "seconds": value, "share": value / total} for name, value in seconds.items()]
    return {"plot": svg.stack(seconds, "share of the time of each step"), "rows": rows, "total": total}


def _settings(settings: Document) -> Iterator[tuple[str, str]]:
    """What it was run with, in words; nothing where nothing was set."""
    for name, value in settings.items():
        if name == "placement":
            for where, placed in value.items():
                yield f"nodes on {where}", _words(placed.get("nodes", {}))
        elif value not in (None, False, {}, [], ""):
            yield name.replace("_", " "), _words(value)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_words(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return figure(value) if isinstance(value, float) else str(value)
