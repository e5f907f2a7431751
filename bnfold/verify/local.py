"""V2, local: at every fold both models get the same activations, so that an error has nowhere else to come from.

Teacher-forced: the float64 activation, rounded to storage, is fed to both sides of a window; `layererror` has the rule.
Windows are run as the float64 evaluation comes by their inputs, and no activation is kept longer than a window needs
it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.errors import ModelError
from bnfold.graph import bodies, dtype, label
from bnfold.inputs.feeds import Sample
from bnfold.providers import named
from bnfold.verify.kernels.base import Unsupported, is_float, real
from bnfold.verify.layererror import LocalMeasure, measure
from bnfold.verify.magnitude import Bounded, bounded
from bnfold.verify.precision import underflows
from bnfold.verify.reference import Evaluator, Observer
from bnfold.verify.sides import OnnxReference
from bnfold.verify.verdict import Status
from bnfold.verify.windows import Window, Windows, extracted

# Their channels are the last axis; convolutions, pools and norms have them behind the batch.
LAST_AXIS = ("MatMul", "Gemm", "Einsum")
# Float64 runs with perturbed weights, where magnitudes were not followed.
RUNS = 3


@dataclass
class Layer:
    """What the samples said of one window: its worst ratio, on which sample and provider."""

    window: Window
    ratio: float = 0.0
    proof: float = 0.0
    sample: str = ""
    provider: str = ""
    witness: Mapping[str, Array] = field(default_factory=dict, repr=False)
    unchecked: str | None = None
    samples: int = 0
    fault: str = ""
    exempt: bool = False
    acquitted: bool = False

    @property
    def name(self) -> str:
        return self.window.name

    @property
    def proven(self) -> bool:
        """Whether no order of summation could have given this."""
        return self.proof > 1.0

    @property
    def faulty(self) -> bool:
        return self.ratio > 1.0 and (self.proven or not self.acquitted)

    def add(self, m: LocalMeasure, sample: Sample, provider: str, feeds: Mapping[str, Array], keep: bool) -> None:
        """Count one sample on one provider; its inputs are kept where they show a fault, or anyway."""
        self.samples += 1
        self.proof, self.fault = max(self.proof, m.proof), m.fault or self.fault
        if m.ratio > self.ratio or not self.sample:
            self.ratio, self.sample, self.provider = m.ratio, str(sample), provider
            self.witness = dict(feeds) if keep or m.ratio > 1.0 else {}

    @property
    def label(self) -> str:
        return self.window.label

    @property
    def status(self) -> Status:
        return "inconclusive" if not self.samples else "mismatch" if self.faulty else "pass"

    @property
    def complaint(self) -> str:
        """What is wrong with the layer, in a line."""
        proof = ", which no rounding can give" if self.proven else ""
        what = self.fault or f"local error {self.ratio:.3g} times its limit{proof}"
        return f"layer {self.label!r}: {what} ({self.provider}, {self.sample})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "node": self.label,
            "output": self.name,
            "reference_nodes": self.window.original.labels,
            "candidate_nodes": self.window.candidate.labels,
            "status": self.status,
            "proven": self.faulty and self.proven,
            "ratio": self.ratio if self.samples else None,
            "proof_ratio": self.proof if self.samples else None,
            "provider": self.provider,
            "sample": self.sample,
            "reason": "no difference behind the layers that read it" if self.acquitted else self.unchecked,
        }


@dataclass
class Local:
    """The check of all changed windows on some samples; `unit` is the coarser unit roundoff of storage and compute.

    `only` names the windows to check instead, `keep` keeps the inputs of the worst sample of each. `refuted` are those
    whose constants are known to be wrong, so that nothing acquits them.
    """

    windows: Windows
    providers: Sequence[str]
    unit: float
    only: Iterable[str] | None = None
    keep: bool = False
    refuted: Collection[str] = ()

    def __post_init__(self) -> None:
        wanted = None if self.only is None else set(self.only)
        self.layers = {
            w.name: Layer(w) for w in self.windows.listed if (w.changed if wanted is None else w.name in wanted)
        }
        self._ready: dict[str, Sides] = {}

    def run(self, evaluator: Evaluator, sample: Sample, observe: Observer | None = None) -> dict[str, Array]:
        """Check every window on one sample and return y; `evaluator` is of the windows' own original."""
        stream = _Stream(self, sample, observe)
        for value in evaluator.model.graph.inputs:
            if value.name in sample.feeds:
                stream.take(value, real(np.asarray(sample.feeds[str(value.name)])))
        return evaluator.run(sample.feeds, stream)

    def faulty(self, samples: Sequence[Sample]) -> list[Layer]:
        """The layers that compute something else; the others that were accused are acquitted.

        A third party's names may have moved: what only they say is held against wider windows, on the same samples,
        in which the accused values are not taken for the same. Where those agree, no layer is at fault.
        """
        accused = [layer for layer in self.layers.values() if layer.faulty]
        if self.windows.trusted or not accused:
            return accused
        labels = {text for layer in accused for text in layer.window.candidate.labels}
        doubted = {layer.name for layer in accused}
        while True:
            wider = self.windows.wider(self.windows.without | doubted)
            concerned = [w.name for w in wider.changed if labels & {*w.candidate.labels}]
            again = Local(wider, self.providers, self.unit, only=concerned)
            evaluator = Evaluator(wider.models[0])
            for sample in samples:
                again.run(evaluator, sample)
            worse = [layer for layer in again.layers.values() if layer.faulty or layer.unchecked is not None]
            further = {layer.name for layer in worse} - doubted - {*wider.outputs}
            if not further:
                break
            doubted |= further
        guilty = {text for layer in worse for text in layer.window.candidate.labels}
        for layer in accused:
            layer.acquitted = layer.name not in self.refuted and not guilty & {*layer.window.candidate.labels}
        return [layer for layer in accused if not layer.acquitted]

    def unreached(self, ran: Collection[Any]) -> Iterator[str]:
        """Yield a reason for each branch or body of the original that differs, or may, but that no input came to."""
        same = self.windows.pairing.same_bodies
        for layer in self.layers.values():
            for node in layer.window.original.nodes:
                skipped = [body.name for body in bodies(node) if len(body) and body not in ran]
                if skipped and not any(same(node, other) for other in layer.window.candidate.nodes):
                    what = f"it differs in {node.op_type} {label(node)!r}, of which no input ran {skipped[0]!r}"
                    yield f"layer {layer.label!r}: {what}; give inputs that do"

    def reported(self) -> list[Layer]:
        """The layers that were held against float64, or could not be."""
        return [x for x in self.layers.values() if x.samples or (x.unchecked is not None and not x.exempt)]

    def check(self, layer: Layer, held: Mapping[ir.Value, Array], sample: Sample) -> None:
        """Run both sides of one window on what the original's values are."""
        if layer.unchecked is not None:
            return
        window = layer.window
        feeds = {str(v.name): _stored(held[v], v) for v in (*window.original.feeds, *self._theirs(window))}
        try:
            sides = self.sides(window, feeds)
            found = bounded(Evaluator(sides.original, cache_bytes=0), feeds)
            if sides.subnormal:
                m = bounded(Evaluator(sides.candidate, cache_bytes=0), feeds).m
                found = replace(found, m=np.maximum(found.m, m) if m.shape == found.m.shape else found.m)
            if not is_float(found.y):
                # Integers are exact or wrong: the output shows which.
                layer.exempt, layer.unchecked = True, "its values are no floating-point numbers"
                return
            for provider in self.providers:
                o, c = (_output(side, provider, feeds) for side in (sides.original, sides.candidate))
                unit = max(self.unit, named(provider).unit)
                measured = measure(found, o, c, unit, sides.axis)
                if measured.ratio > 1.0 and not found.traced:
                    found = perturbed(found, sides.original, feeds)
                    measured = measure(found, o, c, unit, sides.axis)
                layer.add(measured, sample, provider, feeds, self.keep)
        except (Unsupported, ModelError) as error:
            layer.unchecked = str(error)

    def needs(self, window: Window) -> set[ir.Value]:
        """The original's values that a window's two sides read."""
        return {*window.original.feeds, *self._theirs(window)}

    def _theirs(self, window: Window) -> list[ir.Value]:
        twins = self.windows.pairing.twins
        return [twins[v] for v in window.candidate.feeds if v in twins]

    def sides(self, window: Window, feeds: Mapping[str, Array]) -> Sides:
        """Both sides of a window as models of their own, with inputs of the same names."""
        if window.name not in self._ready:
            ours, theirs = self.windows.models
            twins, ranks = self.windows.pairing.twins, {name: array.ndim for name, array in feeds.items()}
            mine = {v: str(v.name) for v in window.original.feeds}
            other = {v: str(twins[v].name) if v in twins else str(v.name) for v in window.candidate.feeds}
            self._ready[window.name] = Sides(
                extracted(window.original, ours, mine, window.name, ranks),
                extracted(window.candidate, theirs, other, window.name, ranks),
                -1 if any(node.op_type in LAST_AXIS for node in window.original.nodes) else 1,
            )
        return self._ready[window.name]


@dataclass(frozen=True)
class Sides:
    """A window's two sides and the axis of its channels."""

    original: ir.Model
    candidate: ir.Model
    axis: int

    @functools.cached_property
    def subnormal(self) -> bool:
        """Whether the candidate's weights are so small that they were rounded by more than their unit roundoff."""
        return any(underflows(v.const_value) for v in self.candidate.graph.initializers.values())


class _Stream:
    """Holds the activations that windows still wait for, and runs each window once it has them all."""

    def __init__(self, local: Local, sample: Sample, observe: Observer | None = None) -> None:
        self.local, self.sample, self.observe = local, sample, observe
        self.held: dict[ir.Value, Array] = {}
        self.missing = {name: local.needs(layer.window) for name, layer in local.layers.items()}
        self.waiting: dict[ir.Value, set[str]] = {}
        for name, values in self.missing.items():
            for value in values:
                self.waiting.setdefault(value, set()).add(name)
        self.readers = {value: set(names) for value, names in self.waiting.items()}

    def __call__(self, node: ir.Node, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        if self.observe is not None:
            self.observe(node, inputs, results)
        for value, array in zip(node.outputs, results, strict=False):
            self.take(value, array)

    def take(self, value: ir.Value, array: Any) -> None:
        """Keep a value if any window waits for it; run those that waited for nothing else."""
        if value not in self.waiting or not isinstance(array, np.ndarray):
            return
        self.held[value] = array
        for name in sorted(self.waiting.pop(value)):
            self.missing[name].discard(value)
            if not self.missing[name]:
                layer = self.local.layers[name]
                self.local.check(layer, self.held, self.sample)
                for used in self.local.needs(layer.window):
                    self.readers[used].discard(name)
                    if not self.readers[used]:
                        self.held.pop(used, None)


def perturbed(found: Bounded, model: ir.Model, feeds: Mapping[str, Array]) -> Bounded:
    """Magnitudes as large as rounding the weights makes them, where they were not followed through every operator."""
    side, name = OnnxReference(model, model), str(model.graph.outputs[0].name)
    changes = [np.abs(side.perturbed(seed).run(feeds)[name] - found.y) for seed in range(RUNS)]
    return replace(found, m=np.maximum(found.m, np.max(changes, axis=0) / side.unit))


def _stored(array: Array, value: ir.Value) -> Array:
    kind = dtype(value)
    if not is_float(array):
        return array
    return array.astype((kind or ir.DataType.FLOAT).numpy())


def _output(model: ir.Model, provider: str, feeds: Mapping[str, Array]) -> Array:
    session = runtime.session(model, provider, optimize=False)
    names = {v.name for v in session.get_inputs()}
    return next(iter(runtime.run(session, {k: v for k, v in feeds.items() if k in names}).values()))
