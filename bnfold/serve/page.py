"""The status page at `/`: what a person wants to know of the server, at one look."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bnfold import __version__
from bnfold.report.html import figure, render, templates
from bnfold.serve import documents
from bnfold.serve.core import Core
from bnfold.serve.versions import Serving, State, Versions

# Seconds after which a browser asks again.
REFRESH = 5
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
# Of the tallest bar, in pixels.
_TALL = 28
_STATES = {
    "equivalent": "pass", "as frozen": "pass", "alarm": "mismatch", "drifted": "mismatch", "waiting": "inconclusive",
}  # fmt: skip

templates()  # now, for there may be no file descriptor left when somebody asks for the page


def page(core: Core) -> str:
    """The page as HTML that needs nothing else."""
    why = core.not_ready()
    return render("status.html", {
        "title": "ready" if not why else "not ready",
        "why": why,
        "facts": _facts(core),
        "models": [_model(core, versions) for versions in core.names.values()],
        "refresh": REFRESH,
        "percentiles": list(PERCENTILES),
        "server": __version__,
    })  # fmt: skip


def _facts(core: Core) -> list[tuple[str, str]]:
    stats = [stats for versions in core.names.values() for stats in versions.stats.values()]
    return [
        (_span(time.time() - core.began), "since the start"),
        (figure(sum(found.recent.rate() for found in stats)), "answers a second, over the last minute"),
        (f"{sum(found.success.count for found in stats):,}", "requests answered"),
        (f"{sum(found.fail.count for found in stats):,}", "requests refused or failed"),
        (str(core.pending), "under way now"),
    ]


def _model(core: Core, versions: Versions) -> dict[str, Any]:
    return {
        "name": versions.name,
        "state": versions.state.name,
        "reason": "" if versions.state is State.UNLOADED else versions.reason,
        "versions": [_version(core, versions, serving) for serving in versions.loaded],
    }


def _version(core: Core, versions: Versions, serving: Serving) -> dict[str, Any]:
    model, stats = serving.model, versions.stats.get(serving.model.version) or serving.batcher.stats
    return {
        "number": model.version,
        "current": serving is versions.current,
        "provider": ", ".join(map(_placed, model.placement.items())) or model.provider,
        "unproven": model.unproven,
        "answered": f"{stats.success.count:,}",
        "rate": figure(stats.recent.rate()),
        "bars": _bars(stats.recent.history()),
        "refused": ", ".join(f"{count:,} {reason}" for reason, count in stats.refused.most_common()),
        "latencies": [(name, _latency(stats.percentile(share))) for name, share in PERCENTILES.items()],
        "queue": serving.batcher.depth,
        "sha256": model.digest[:12],
        "certificate": model.properties.get("certificate"),
        "watchers": [_watcher(name, found) for name, found in documents.watched(core, model).items()],
    }


def _placed(item: tuple[str, int]) -> str:
    name, count = item
    return f"{name} ({count} node{'s' * (count != 1)})"


def _bars(counts: Sequence[int]) -> list[dict[str, int]]:
    """One for each second with an answer: its place from the left, and a height of at least a pixel."""
    most = max(counts)
    return [{"place": i, "height": math.ceil(_TALL * n / most)} if n else {} for i, n in enumerate(counts)]


def _watcher(name: str, found: Any) -> dict[str, Any]:
    if name not in _DETAILS:  # an observer that is not ours
        return {"name": name, "state": "", "kind": "", "detail": str(found)}
    return {"name": name, "state": found["state"], "kind": _STATES[found["state"]], "detail": _DETAILS[name](found)}


def _shadow(found: Mapping[str, Any]) -> str:
    if not found["compared"]:
        return "no request was compared with the original yet"
    other = "" if found["is_source"] is not False else ", and that is not the file that this model was made of"
    worst = "" if found["worst_ratio"] is None else f", worst error {figure(found['worst_ratio'], 2)} of its limit"
    return f"{found['differ']} of {found['compared']} compared answers differ from the original's{worst}{other}"


def _drift(found: Mapping[str, Any]) -> str:
    if not found["windows"]:
        return f"fewer than {found['window']} sampled rows so far"
    if found["drifted"]:
        worst = found["drifted"][0]
        count = len(found["drifted"])
        return f"{count} layer{'s' * (count != 1)}, {worst['name']} the most: {figure(worst['distance'], 2)}σ"
    return f"{found['layers']} layers, at most {figure(found['distance'], 2)}σ off, in {found['windows']} windows"


_DETAILS = {"shadow": _shadow, "drift": _drift}


def _latency(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    if math.isinf(seconds):
        return "over 10 s"
    return f"≤ {seconds * 1e3:g} ms" if seconds < 1 else f"≤ {seconds:g} s"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
