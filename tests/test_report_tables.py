"""Tables in a terminal: names wrap where a person would, and everything fits."""

from __future__ import annotations

from typing import Any

import pytest

from bnfold.report.layout import wrapped
from tests.reports import LAYERS, document


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, ["← /layer1/layer1.0/conv1/Conv ← stages.0/Add"]),
        (40, ["← /layer1/layer1.0/conv1/Conv", "← stages.0/Add"]),
        (20, ["← /layer1/layer1.0/", "conv1/Conv", "← stages.0/Add"]),
        (6, ["← /", "layer1", "/", "layer1", ".0/", "conv1/", "Conv", "←", "stages", ".0/Add"]),
    ],
)
def test_names_wrap_where_a_person_would(width: int, expected: list[str]) -> None:
    text = "← /layer1/layer1.0/conv1/Conv ← stages.0/Add"
    lines = wrapped(text, width)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if width > 6:
        assert lines == expected


LONG = "/backbone/features/denseblock4/denselayer16/norm2/very_long_name_of_a_node"


def tables_of_everything() -> list[Any]:
    """Every table with names that no terminal is wide enough for."""
    from bnfold.audit.findings import AuditFinding, Code
    from bnfold.bench import BenchReport, Row
    from bnfold.folding.report import Entry, FoldReport
    from bnfold.merging.costs import Cost
    from bnfold.merging.report import Merge
    from bnfold.report import tables
    from bnfold.rules.base import Reason

    reason = next(iter(Reason))
    entries = (
        Entry(LONG, "BatchNormalization", 2048, "folded", "hoist", (LONG, LONG), (LONG,)),
        Entry(LONG, "BatchNormalization", None, "kept", reason=reason, blocking=LONG, detail=f"also read by {LONG}"),
    )
    dear, cheap = Cost(1e9), Cost(9e8)
    merges = (
        Merge("sum", (LONG, LONG), LONG, dear, cheap, 4),
        Merge("composition", (LONG,), None, cheap, dear, 4, "one layer would cost more"),
    )
    folds = FoldReport(entries, 1, 0, 2000, 1500, merges)
    unsound = [AuditFinding(Code.VANISHING_VARIANCE, LONG, "running_var is below epsilon in 2 of 8 channels (0, 5)")]
    row = Row(LONG, 123456.7, 123456.7, 123456.7, 1.0, 0.5, 1.5)
    bench = BenchReport((row, row), "cpu", 1, 1, {"x": (1,)}, "")
    names = {"output": LONG, "sample": "normal (batch=3, height=224)"}
    cells = [{**cell, **names} for cell in document("mismatch")["cells"]]
    reasons = [f"output {LONG!r} on cpu, off: error 1.2e-05, 41.2 times the limit 4.7e-07"] * 20
    verdict = document("mismatch", cells=cells, layers=LAYERS, reasons=reasons, warnings=["w" * 30])
    return [*tables.inspected(folds, unsound), *tables.bench(bench), *tables.verdict(verdict)]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_table_fits_the_terminal(width: int) -> None:
    import io

    from rich.console import Console

    stream = io.StringIO()
    console = Console(width=width, file=stream, highlight=False, emoji=False)
    for part in tables_of_everything():
        console.print(part)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    if width >= 80:
        # Numbers and status words are whole, and on a wide terminal a route is too.
        text = stream.getvalue()
        assert all(word in text for word in ("mismatch", "folded", "123456.7", "0.500–1.500", "900,000,000"))
        assert (f"← {LONG}" in text) == (width == 200)
