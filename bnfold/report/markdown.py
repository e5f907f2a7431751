"""A verification as Markdown for a job summary: the verdict, why, and the figures, within GitHub's size limit."""

from __future__ import annotations

import re
from pathlib import PurePath

from bnfold.report.findings import Document, findings, outcome, status

MARKS = {"pass": "✅", "mismatch": "❌", "inconclusive": "⚠️"}
# GitHub drops a step summary of more than 1 MiB; a person reads much less.
ROWS = 60


def markdown(document: Document) -> str:
    """The document of a verification as one Markdown section."""
    reference, candidate = (PurePath(document[key]).name for key in ("reference", "candidate"))
    colour, word = outcome(document)
    errors = [f for f in findings(document) if f.level == "error"]
    title = f"{MARKS[colour]} {_escape(candidate)} against {_escape(reference)}: {word}"
    lines = [f"### {title}", "", _sentence(document), ""]
    # The table below has the outputs' figures.
    lines += _bullets([f.message for n, f in enumerate(errors) if n == 0 or not (f.tabled and f.cell)])
    lines += _bullets([f"warning: {text}" for text in document["warnings"]])
    lines += _cells(document)
    certificate = document["certificate"].get("summary")
    if certificate:
        lines += [f"Certificate: {_escape(certificate)}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _sentence(document: Document) -> str:
    settings, coverage = document["settings"], document["coverage"]
    parts = []
    if document["ratio"] is not None:
        parts.append(f"worst error **{document['ratio']:.2g}** of the limit")
    if settings.get("samples"):
        parts.append(f"{settings['samples']} inputs")
    if settings.get("providers"):
        parts.append(", ".join(map(_escape, settings["providers"])))
    if coverage.get("fraction") is not None:
        parts.append(f"{coverage['fraction']:.0%} of the activations' channels covered")
    return " · ".join(parts)


def _bullets(messages: list[str]) -> list[str]:
    more = [f"- and {len(messages) - ROWS} more"] if len(messages) > ROWS else []
    return [*(f"- {_escape(text)}" for text in messages[:ROWS]), *more, ""] if messages else []


def _cells(document: Document) -> list[str]:
    cells = document["cells"]
    if not cells:
        return []
    order = ("mismatch", "inconclusive", "pass")
    shown = sorted(cells, key=lambda cell: order.index(status(document, cell)))[:ROWS]
    lines = ["| output | provider | level | status | error | limit | ratio |", "|---|---|---|---|--:|--:|--:|"]
    for cell in shown:
        names = (_escape(cell[key]) for key in ("output", "provider", "level"))
        figures = (_figure(cell[key]) for key in ("error", "limit", "ratio"))
        found = status(document, cell)
        lines.append("| " + " | ".join([*names, f"{MARKS[found]} {found}", *figures]) + " |")
    if len(cells) > len(shown):
        lines += ["", f"and {len(cells) - len(shown)} more comparisons"]
    return [*lines, ""]


def _figure(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3g}"


def _escape(text: str) -> str:
    """Plain text: no Markdown, no HTML, one line."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#|~!&@])", r"\\\1", flat).replace("\\<", "&lt;").replace("\\>", "&gt;")
