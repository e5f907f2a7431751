"""Drift: what sampled requests carry through the model, held against the statistics that BatchNorm was frozen with.

Folding removes the statistics from the graph and keeps them in the metadata, so a folded model is watched like any
other. The test is that of `bnfold audit`, over windows of `WINDOW` rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from bnfold import runtime
from bnfold.audit.drift import LayerDrift, compare, largest
from bnfold.audit.moments import Moments
from bnfold.audit.observe import Site, sites, tapped
from bnfold.errors import BnfoldError
from bnfold.serve import log
from bnfold.serve.background import Background, alive
from bnfold.serve.capture import Capture
from bnfold.serve.model import Model
from bnfold.serve.observe import Finished

WINDOW = 256
_LABELS = ("model", "version")


@dataclass(eq=False)
class Watch:
    """The BatchNorms of one version: where they show, and what was seen there in this window and in the last."""

    watched: Sequence[Site]
    hidden: int
    session: Any
    rows: int = 0
    windows: int = 0
    seen: list[Moments] = field(default_factory=list)
    layers: Sequence[LayerDrift] = ()

    @property
    def drifted(self) -> list[LayerDrift]:
        """The layers that are off in the last window, the worst first."""
        return sorted((layer for layer in self.layers if layer.large), key=lambda layer: -layer.distance)

    @property
    def distance(self) -> float:
        """The largest distance of any layer in the last window, in σ."""
        return largest(self.layers)

    def add(self, inputs: Mapping[str, Any], rows: int) -> bool:
        """Take in one batch; whether that filled the window."""
        found = runtime.run(self.session, inputs) if self.session is not None else {}
        self.seen = self.seen or [site.moments() for site in self.watched]
        for site, moments in zip(self.watched, self.seen, strict=True):
            moments.add(found[site.value] if site.value in found else inputs[site.value], rows)
        self.rows += rows
        if self.rows < WINDOW:
            return False
        self.layers = compare([(s.frozen, s.at_input(m), s.live) for s, m in zip(self.watched, self.seen, strict=True)])
        self.seen, self.rows, self.windows = [], 0, self.windows + 1
        return True


class Drift(Background):
    """Watches every version whose BatchNorms, folded or not, are known; `capture` keeps a batch of a drifted window."""

    def __init__(self, rate: float, capture: Capture | None = None) -> None:
        super().__init__(rate)
        self.capture = capture
        self.watches: WeakKeyDictionary[Model, Watch] = WeakKeyDictionary()

    def admit(self, model: Model) -> None:
        if not model.contract.has_rows:
            return
        found, hidden = sites(model.source)
        if not found:
            return
        try:
            tap = tapped(model.source, found, only=True)
            session = runtime.session(tap, "cpu", optimize=False, threads=1) if tap.graph.outputs else None
        except BnfoldError as error:
            log.warning("drift is not watched", model=model.name, why=error)
            return
        self.watches[model] = Watch(found, len(hidden), session)

    def wants(self, batch: Finished) -> bool:
        return batch.model in self.watches

    def look(self, batch: Finished) -> None:
        model, watch = batch.model, self.watches[batch.model]
        before = bool(watch.drifted)
        if not watch.add(batch.inputs, batch.rows):
            return
        if watch.drifted and not before:
            worst = watch.drifted[0]
            kept = self.capture.keep(model.name, model.version, batch.inputs) if self.capture else None
            log.warning(
                "the data has drifted", model=model.name, version=model.version, layers=len(watch.drifted),
                worst=worst.name, sigma=round(worst.distance, 3), captured=kept,
            )  # fmt: skip
        elif before and not watch.drifted:
            log.info("the data is as it was", model=model.name, version=model.version)

    def status(self, model: Model) -> Mapping[str, Any]:
        watch = self.watches.get(model)
        if watch is None:
            return {}
        state = "drifted" if watch.drifted else "as frozen" if watch.windows else "waiting"
        worst = [{"name": layer.name, "distance": layer.distance} for layer in watch.drifted[:5]]
        return {
            "drift": {
                "state": state, "windows": watch.windows, "window": WINDOW, "distance": watch.distance,
                "layers": len(watch.watched), "hidden": watch.hidden, "drifted": worst, "skipped": self.skipped,
            }
        }  # fmt: skip

    def metrics(self) -> Iterable[Metric]:
        windows = CounterMetricFamily("bnfold_drift_windows", "Windows of rows held against BatchNorm", labels=_LABELS)
        distance = GaugeMetricFamily("bnfold_drift_distance", "Largest distance of a layer, in sigma", labels=_LABELS)
        layers = GaugeMetricFamily("bnfold_drift_layers", "Layers whose statistics no longer fit", labels=_LABELS)
        for model, watch in alive(self.watches):
            labels = (model.name, model.version)
            windows.add_metric(labels, watch.windows)
            distance.add_metric(labels, watch.distance)
            layers.add_metric(labels, len(watch.drifted))
        yield from (windows, distance, layers)
        yield CounterMetricFamily("bnfold_drift_skipped", "Sampled requests not looked at, being busy", self.skipped)
