"""Shadow equivalence: sampled requests run on the original too, off the reply path, and the answers are held together.

The rule is that of `bnfold verify`: RMS(c − y) ≤ τ·max(RMS(o − y), S, η), with y the original in float64. As four
evaluations in float64 cost more than the answer did, a screen comes first: from samples that were judged in full it
knows what share of RMS(y) the limit was at least, and a difference of c to o within that share is no finding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import ml_dtypes
import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.errors import ModelError
from bnfold.inputs.feeds import Sample
from bnfold.io import digest, load
from bnfold.providers import TF32_UNIT, named
from bnfold.serve import log
from bnfold.serve.background import Background, alive
from bnfold.serve.capture import Capture
from bnfold.serve.core import Core
from bnfold.serve.errors import Refused
from bnfold.serve.model import Model
from bnfold.serve.observe import Finished
from bnfold.verify.compare import rms, scores
from bnfold.verify.contract import differences
from bnfold.verify.kernels.base import Unsupported
from bnfold.verify.sides import OnnxReference, Run
from bnfold.verify.trial import Expected, Trial

Arrays = Mapping[str, Array]

ORIGINAL = "original.onnx"
RUNS = 3
# As many samples of a version are judged in full before the screen is trusted, and every so many after that.
FIRST, EVERY = 4, 64
# So many findings among the last comparisons are an alarm.
ALARM, LAST = 2, 20
_LABELS = ("model", "version")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One batch on both models. `ratio` is the error over its limit; None if the screen let it pass."""

    max_abs: float
    max_ulp: float
    flips: int
    ratio: float | None
    output: str

    @property
    def differs(self) -> bool:
        return self.ratio is not None and self.ratio > 1.0


@dataclass(eq=False)
class Twin:
    """The original of a served version: as it runs on the provider without optimizations, and in float64."""

    path: Path
    side: OnnxReference
    run: Run
    coarser: float
    judged: int = 0
    compared: int = 0
    share: dict[str, float] = field(default_factory=dict)
    # What the served model's certificate names as its source, None without one, and what this file is.
    certified: str | None = None
    digest: str = ""

    @property
    def is_source(self) -> bool | None:
        """Whether the served model was made of this very file; None if it does not say."""
        return None if self.certified is None else self.certified == self.digest

    @classmethod
    def of(cls, path: Path, model: Model) -> Twin:
        """Open the original at `path`. Raises `ModelError` if it is another model, or float64 can't evaluate it."""
        original = load(path)
        broken, _ = differences(original, model.source)
        if broken:
            raise ModelError(f"{path}: is not the original of {model.path}: {broken[0]}")
        side = OnnxReference(original, path)
        try:
            side.exact()
        except Unsupported as missing:
            raise ModelError(f"{path}: can't be a shadow: no float64 evaluation of {missing}") from missing
        session = side.session(model.provider, gate=False, strict=False)
        coarser = TF32_UNIT / side.unit if named(model.provider).tf32 else 1.0
        certified = model.properties.get("certificate", {}).get("source")
        return cls(
            path, side, partial(runtime.run, session), max(coarser, 1.0), certified=certified, digest=digest(original)
        )

    def compare(self, inputs: Arrays, outputs: Arrays) -> Comparison:
        """Hold the outputs that were given against the original's; raises `Unsupported` or `RunError`."""
        o = self.run(inputs)
        full = self.judged < FIRST or self.compared % EVERY == 0 or not self._screened(o, outputs)
        self.compared += 1
        ratio, worst = self._judged(inputs, o, outputs) if full else (None, next(iter(outputs)))
        apart = [_apart(o[name], c) for name, c in outputs.items()]
        flips = sum(_flips(o[name], c) for name, c in outputs.items())
        return Comparison(max(a for a, _ in apart), max(u for _, u in apart), flips, ratio, worst)

    def _screened(self, o: Arrays, outputs: Arrays) -> bool:
        return all(
            np.array_equal(o[name], c) if name not in self.share else _close(o[name], c, self.share[name])
            for name, c in outputs.items()
        )

    def _judged(self, inputs: Arrays, o: Arrays, outputs: Arrays) -> tuple[float, str]:
        expected = Expected(Sample("request", {}, inputs), self.side.exact().run(inputs))
        for seed in range(RUNS):
            expected.perturb(self.side.perturbed(seed))
        trial = Trial(expected, o, self.coarser)
        found = {name: trial.measure(name, c) for name, c in outputs.items()}
        self.judged += 1
        for name, m in found.items():
            if m.limit > 0 and m.size > 0:
                self.share[name] = min(self.share.get(name, np.inf), m.limit / m.size)
        ratios = {name: np.inf if m.mismatch else m.ratio for name, m in found.items()}
        worst = max(ratios, key=lambda name: ratios[name])
        return float(ratios[worst]), worst


@dataclass(eq=False)
class Record:
    """What was seen of one version."""

    compared: int = 0
    judged: int = 0
    differ: int = 0
    flips: int = 0
    max_abs: float = 0.0
    max_ulp: float = 0.0
    ratio: float = 0.0
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=LAST))
    alarmed: bool = False

    def add(self, found: Comparison) -> None:
        """Count one comparison."""
        self.compared += 1
        self.judged += found.ratio is not None
        self.differ += found.differs
        self.flips += found.flips
        self.max_abs, self.max_ulp = max(self.max_abs, found.max_abs), max(self.max_ulp, found.max_ulp)
        self.ratio = max(self.ratio, found.ratio or 0.0)
        self.recent.append(found.differs)


class Shadow(Background):
    """Compares what is served with the model at `original`, by default with `original.onnx` beside it if there is one.

    On an alarm the version before answers again if `roll_back` says so and there is one; `capture` keeps the inputs.
    """

    def __init__(self, original: Path | None, rate: float, *, roll_back: bool = True, capture: Capture | None = None):
        super().__init__(rate)
        self.original, self.roll_back, self.capture = original, roll_back, capture
        self.twins: WeakKeyDictionary[Model, Twin] = WeakKeyDictionary()
        self.records: WeakKeyDictionary[Model, Record] = WeakKeyDictionary()
        self._core: Core | None = None

    def attach(self, core: Core) -> None:
        self._core = core

    def admit(self, model: Model) -> None:
        path = self.original or model.path.with_name(ORIGINAL)
        if self.original is not None or path.is_file():
            twin = self.twins[model] = Twin.of(path, model)
            self.records[model] = Record()
            if twin.is_source is False:
                log.warning(
                    "the shadow is not the file that this model was made of", model=model.name, version=model.version,
                    shadow=path, shadow_sha256=twin.digest[:12], source_sha256=str(twin.certified)[:12],
                )  # fmt: skip

    def wants(self, batch: Finished) -> bool:
        return batch.model in self.twins

    def look(self, batch: Finished) -> None:
        model = batch.model
        found, record = self.twins[model].compare(batch.inputs, batch.outputs), self.records[model]
        record.add(found)
        if not found.differs:
            return
        kept = self.capture.keep(model.name, model.version, batch.inputs) if self.capture else None
        log.warning(
            "differs from the original", model=model.name, version=model.version, output=found.output,
            ratio=round(found.ratio or 0.0, 3), max_abs=found.max_abs, captured=kept,
        )  # fmt: skip
        if sum(record.recent) >= ALARM and not record.alarmed:
            record.alarmed = True
            self.later(self._alarm, model)

    def _alarm(self, model: Model) -> None:
        log.error("is not its original", model=model.name, version=model.version)
        core = self._core
        if core is None or not self.roll_back:
            return
        current = core.versions(model.name).current
        if current is None or current.model is not model:
            return
        try:
            core.roll_back(model.name, f"version {model.version} differs from its original")
        except Refused as refused:
            log.error("not rolled back", model=model.name, why=refused)

    def status(self, model: Model) -> Mapping[str, Any]:
        record = self.records.get(model)
        if record is None:
            return {}
        state = "alarm" if record.alarmed else "equivalent" if record.judged else "waiting"
        return {
            "shadow": {
                "state": state, "is_source": self.twins[model].is_source,
                "compared": record.compared, "judged": record.judged, "differ": record.differ,
                "argmax_flips": record.flips, "max_abs": record.max_abs, "max_ulp": record.max_ulp,
                "worst_ratio": record.ratio if np.isfinite(record.ratio) else None, "skipped": self.skipped,
            }
        }  # fmt: skip

    def metrics(self) -> Iterable[Metric]:
        records = [((model.name, model.version), record) for model, record in alive(self.records)]
        for name, text, kind, value in _METRICS:
            family = kind(f"bnfold_shadow_{name}", text, labels=_LABELS)
            for labels, record in records:
                family.add_metric(labels, value(record))
            yield family
        yield CounterMetricFamily("bnfold_shadow_skipped", "Sampled requests not compared, being busy", self.skipped)


_METRICS: tuple[tuple[str, str, Any, Any], ...] = (
    ("compared", "Batches compared with the original", CounterMetricFamily, lambda r: r.compared),
    ("differ", "Batches that differ by more than rounding", CounterMetricFamily, lambda r: r.differ),
    ("argmax_flips", "Rows of class scores whose best class differs", CounterMetricFamily, lambda r: r.flips),
    ("max_abs", "Largest absolute difference seen", GaugeMetricFamily, lambda r: r.max_abs),
    ("max_ulp", "Largest difference seen, in units in the last place", GaugeMetricFamily, lambda r: r.max_ulp),
    ("alarm", "1 if this version is taken to be another model", GaugeMetricFamily, lambda r: float(r.alarmed)),
)


def _close(o: Array, c: Array, share: float) -> bool:
    if o.shape != c.shape or not np.array_equal(np.isfinite(o), np.isfinite(c)):
        return False
    good = np.isfinite(o)
    wide = o[good].astype(np.float64)
    return rms(c[good].astype(np.float64) - wide) <= share * rms(wide)


def _apart(o: Array, c: Array) -> tuple[float, float]:
    """The largest absolute difference and the largest in units in the last place of the larger of the two."""
    if o.shape != c.shape:
        return float("inf"), float("inf")
    if o.dtype.kind not in "fV" or not o.size:
        return float(np.count_nonzero(o != c)), float(np.count_nonzero(o != c))
    good = np.isfinite(o) & np.isfinite(c)
    if not good.any():
        return 0.0, 0.0
    kind = ml_dtypes.finfo(o.dtype)  # type: ignore[no-untyped-call]
    left, right = o[good].astype(np.float64), c[good].astype(np.float64)
    difference = np.abs(left - right)
    _, exponent = np.frexp(np.maximum(np.abs(left), np.abs(right)))
    unit = np.maximum(np.ldexp(float(kind.eps), exponent - 1), float(kind.smallest_subnormal))
    return float(difference.max()), float((difference / unit).max())


def _flips(o: Array, c: Array) -> int:
    if scores(o.shape) is None or o.shape != c.shape or o.dtype.kind not in "fV":
        return 0
    return int(np.count_nonzero(o.argmax(1) != c.argmax(1)))
