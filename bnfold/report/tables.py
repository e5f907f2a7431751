"""Results as rich tables and one-line summaries for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bnfold.report.findings import findings, status
from bnfold.report.layout import Name, count, grid, plain, size

if TYPE_CHECKING:
    from bnfold.audit.findings import AuditFinding
    from bnfold.bench import BenchReport
    from bnfold.doctor import Health
    from bnfold.folding.report import Entry, FoldReport
    from bnfold.pipeline import Optimized

Renderable = Table | str

COLOURS = {"pass": "green", "mismatch": "red", "inconclusive": "yellow"}
# Lines that a verdict takes at most for its reasons, and rows for its layers; the JSON document has them all.
SHOWN = 12
# Stations of a route that a table shows; the JSON document has them all.
STATIONS = 8

__all__ = [
    "bench", "bisected", "fold_line", "folds", "health", "inspected", "merges", "optimized", "size", "statistics",
    "verdict", "verdict_lines",
]  # fmt: skip


def inspected(report: FoldReport, unsound: Sequence[AuditFinding]) -> Iterator[Renderable]:
    """Routes and reasons, merges, the statistics, and the sum of it."""
    yield from folds(report)
    merged = merges(report)
    if merged is not None:
        yield merged
        yield ""
    yield from statistics(unsound, len(report.entries))
    yield fold_line(report)


def folds(report: FoldReport, *, kept_only: bool = False) -> Iterator[Renderable]:
    """One row a BatchNormalization: where it went, or what blocks it and what would help."""
    entries = [entry for entry in report.entries if entry.status == "kept" or not kept_only]
    if not entries:
        return
    table = grid("BatchNorm", "channels", "status", "route, or reason")
    norms = {entry.node for entry in report.entries}
    for entry in entries:
        folded = entry.status == "folded"
        mark = "[green]folded[/]" if folded else "[yellow]kept[/]"
        channels = "" if entry.channels is None else str(entry.channels)
        told = _route(entry, norms) if folded else _blocked(entry)
        table.add_row(Name(named(entry.node)), channels, mark, Name(told))
    hints = {entry.reason.code: entry.hint for entry in entries if entry.reason is not None and entry.hint}
    yield table
    yield ""
    yield from _explained(hints)


def merges(report: FoldReport) -> Table | None:
    """One row a merge: the layers that become one, or why they stay apart, and what the cost model says."""
    if not report.merges:
        return None
    table = grid("layers", "become", "cost before", "after")
    for merge in report.merges:
        into = Name(merge.into) if merge.into is not None else Name(f"apart: {merge.reason or ''}", "yellow")
        table.add_row(Name(" + ".join(merge.nodes)), into, f"{merge.cost_before:,.0f}", f"{merge.cost_after:,.0f}")
    return table


def statistics(found: Sequence[AuditFinding], total: int) -> Iterator[Renderable]:
    """The health of the BatchNorms' frozen statistics: what is unsound, and what to do about it."""
    if not total:
        return
    if not found:
        yield f"statistics: sound in {'the one' if total == 1 else f'all {total:,}'}"
        return
    table = grid("BatchNorm", "statistics", "detail")
    for finding in found:
        table.add_row(Name(named(finding.module)), Name(finding.code.value, "yellow"), Name(finding.detail))
    yield table
    yield ""
    yield from _explained({finding.code.value: finding.remedy for finding in found})


def fold_line(report: FoldReport) -> str:
    """`12 of 14 BatchNorms fold, 2 stay; 90 → 78 nodes`."""
    total = report.folded + report.kept
    if not total:
        return "no BatchNorm in this model"
    others = f"; {count(report.affines, 'other constant affine')} removed" if report.affines else ""
    folding = f"{report.folded:,} of {count(total, 'BatchNorm')} fold{'s' if report.folded == 1 else ''}"
    stays = f"{report.kept:,} stay{'s' if report.kept == 1 else ''}"
    return f"{folding}, {stays}{others}; {report.nodes_before:,} → {count(report.nodes_after, 'node')}"


def optimized(done: Optimized, verdict: Mapping[str, Any] | None, output: str | None) -> Iterator[Renderable]:
    """What was folded, whether it is proven, and where it is now."""
    yield from folds(done.report, kept_only=True)
    table = grid("", "before", "after")
    table.add_row("BatchNorms", f"{done.report.folded + done.report.kept:,}", f"{done.report.kept:,}")
    table.add_row("nodes", f"{done.nodes_before:,}", f"{done.nodes_after:,}")
    merged = sum(len(merge.nodes) for merge in done.report.merges if merge.into is not None)
    if merged:
        table.add_row("layers merged", "", f"{merged:,}")
    table.add_row("weights", size(done.bytes_before), size(done.bytes_after))
    yield table
    yield ""
    if done.simplified.status == "failed":
        yield f"[yellow]not simplified[/]: {plain(done.simplified.reason)}"
    if verdict is None:
        yield "[yellow]not verified[/]"
    else:
        yield from verdict_lines(verdict)
    if output is not None:
        yield f"written: {plain(output)}"


def verdict(document: Mapping[str, Any]) -> Iterator[Renderable]:
    """One row a comparison, the layers that differ, the verdict, and everything that speaks against it."""
    if document["cells"]:
        table = grid("output", "run on", "status", "error", "limit", "ratio", "worst on")
        for cell in document["cells"]:
            found = status(document, cell)
            mark = f"[{COLOURS[found]}]{found}[/]"
            figures = (_short(cell["error"]), _short(cell["limit"]), _ratio(cell["ratio"]))
            place = Name(f"{cell['provider']}, {cell['level']}")
            table.add_row(Name(cell["output"]), place, mark, *figures, Name(cell["sample"]))
        yield table
        yield ""
    yield from _layers(document.get("layers") or ())
    yield from verdict_lines(document, tabled=True)
    if document["status"] == "mismatch" and not document["settings"].get("keep_going"):
        yield "[dim]ended at the first mismatch: --all goes on, and bnfold bisect names the layers[/]"
    yield from _time(document.get("seconds") or {})


def verdict_lines(document: Mapping[str, Any], *, tabled: bool = False) -> Iterator[str]:
    """The verdict in its colour, then what else speaks against it; what is `tabled` above is not said again."""
    errors = [finding for finding in findings(document) if finding.level == "error" and finding.rule != "regression"]
    reasons = [finding.message for n, finding in enumerate(errors) if n == 0 or not (tabled and finding.tabled)]
    status = document["status"]
    colour = COLOURS[status]
    if status == "pass":
        yield f"[{colour}]pass[/]: {plain(_passed(document))}"
        proof = document["certificate"].get("summary")
        if proof:
            yield f"  {plain(proof)}"
    else:
        yield f"[{colour}]{status}[/]: {plain(reasons[0] if reasons else 'no reason given')}"
        yield from (f"  {plain(reason)}" for reason in reasons[1:SHOWN])
        if len(reasons) > SHOWN:
            yield f"  and {len(reasons) - SHOWN} more; --json lists them"
    yield from (f"[yellow]warning[/]: {plain(warning)}" for warning in document["warnings"])
    yield from _baseline(document.get("baseline"))


def bisected(document: Mapping[str, Any], summary: str) -> Iterator[Renderable]:
    """One row a layer that differs, in the reference's order, then what was done."""
    if document["layers"]:
        table = grid("layer", "error over its limit", "proven no rounding", "worst on")
        for layer in document["layers"]:
            proven = "yes" if layer["proven"] else "no"
            table.add_row(Name(layer["node"]), _ratio(layer["ratio"]), proven, Name(layer["sample"]))
        yield table
        yield ""
    colour = COLOURS[{"same": "pass", "found": "mismatch"}.get(document["status"], "inconclusive")]
    yield f"[{colour}]{plain(summary)}[/]"
    if document["output"] is not None:
        yield f"written: {plain(document['output'])}, a reproducer"


def bench(report: BenchReport) -> Iterator[Renderable]:
    """One row a model: latency, its spread, and the ratio to the first model with its interval."""
    table = grid("model", "median µs", "p10", "p90", "ratio to the first (95 %)")
    for row in report.rows:
        times = (f"{row.median_us:.1f}", f"{row.p10_us:.1f}", f"{row.p90_us:.1f}")
        table.add_row(Name(row.name), *times, f"{row.ratio:.3f} ({row.ratio_low:.3f}–{row.ratio_high:.3f})")
    yield table
    yield ""
    yield plain(str(report).splitlines()[-1])
    if report.hint:
        yield f"[yellow]{plain(report.hint)}[/]"


def health(found: Health) -> Iterator[Renderable]:
    """Versions, providers, and each finding with the command that mends it."""
    versions = grid("package", "version", "needed for")
    for package in found.packages:
        version = package.version or "[dim]not installed[/]"
        versions.add_row(package.name, version, package.extra or "everything")
    yield versions
    yield ""
    providers = grid("provider", "status", "")
    for provider in found.providers:
        mark = "[green]works[/]" if provider.works else "[dim]does not run[/]"
        providers.add_row(provider.name, mark, plain(provider.detail))
    yield providers
    yield ""
    for finding in found.findings:
        yield f"[red]{plain(finding.what)}[/]\n  {plain(finding.mend)}"
    if not found.findings:
        yield "[green]nothing to mend[/]"
    if found.missing_extras:
        mend = f"pip install 'bnfold[{','.join(found.missing_extras)}]'"
        yield f"for what is not installed: {plain(mend)}"


def _explained(codes: Mapping[str, str]) -> Iterator[str]:
    """The codes of a table with what each means, beside it and not in it: a narrow table would squeeze them."""
    yield from (f"{plain(code)}: {plain(text)}" for code, text in codes.items())
    if codes:
        yield ""


def _layers(layers: Sequence[Mapping[str, Any]]) -> Iterator[Renderable]:
    """The layers that are out of tolerance, the worst first."""
    faulty = [layer for layer in layers if layer["status"] == "mismatch"]
    if not faulty:
        return
    faulty.sort(key=lambda layer: -1e300 if layer["ratio"] is None else -layer["ratio"])
    table = grid("layer", "error over its limit", "proven no rounding", "worst on")
    for layer in faulty[:SHOWN]:
        proven = "yes" if layer.get("proven") else "no"
        table.add_row(Name(layer["node"]), _ratio(layer["ratio"]), proven, Name(layer.get("sample", "")))
    yield table
    yield ""


def _time(seconds: Mapping[str, float]) -> Iterator[str]:
    """Where the time went, if it was long enough to ask."""
    total = sum(seconds.values())
    if total >= 1.0:
        most = sorted(seconds.items(), key=lambda item: -item[1])[:3]
        yield f"[dim]{total:.1f} s: {', '.join(f'{plain(step)} {value:.1f}' for step, value in most)}[/]"


def _passed(document: Mapping[str, Any]) -> str:
    samples = count(int(document["settings"].get("samples") or 0), "input")
    providers = ", ".join(dict.fromkeys(cell["provider"] for cell in document["cells"]))
    return f"worst error {_ratio(document['ratio'])} of the limit on {samples} ({providers})"


def _baseline(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    name = plain(found["file"])
    for entry in found["regressions"]:
        before, now = entry["before"], _ratio(entry["now"])
        yield f"[red]worse than {name}[/]: {plain(entry['where'])}: error ratio {now}, was {before:.2g}"
    if not found["regressions"]:
        yield f"no worse than {name}: {count(found['compared'], 'ratio')} within {found['factor']:g} times"
    if found["missing"]:
        missing = plain(", ".join(found["missing"][:SHOWN]))
        yield f"[yellow]warning[/]: in {name}, but not compared now: {missing}"


def _short(value: float | None) -> str:
    return "∞" if value is None else "0" if value == 0 else f"{value:.1e}"


def _ratio(value: float | None) -> str:
    if value is None:
        return "∞"
    return "0" if value == 0 else f"{value:.2g}" if 0.001 <= value < 1e4 else f"{value:.0e}"


def named(node: str) -> str:
    """A node's name without what the column says already: exporters put the operator behind the module."""
    return node.removesuffix("/BatchNormalization")


def _route(entry: Entry, norms: Set[str]) -> str:
    """Where it went; a BatchNorm on the way goes too, and a long way is told by its ends."""
    if not entry.route:
        return "a scale or a shift alone: Mul or Add in its place"
    passed = [station for station in entry.route if station not in norms or station in entry.absorbers]
    stations = passed or list(entry.route)
    if len(stations) > STATIONS:
        ends = STATIONS // 2
        stations[ends:-ends] = [f"… {len(stations) - 2 * ends} more"]
    arrow = " ← " if entry.judgement == "hoist" else " → "
    return ("merged into " if entry.judgement == "merge" else arrow[1:]) + arrow.join(stations)


def _blocked(entry: Entry) -> str:
    where = f" at {entry.blocking}" if entry.blocking else ""
    detail = f": {entry.detail}" if entry.detail else ""
    return f"{entry.reason.code if entry.reason else ''}{where}{detail}"
