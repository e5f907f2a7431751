"""The reference of a verification as the gate sees it: exact, perturbed, and as it runs on a provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.io import Source
from bnfold.verify.precision import UNIT_ROUNDOFF, model_unit
from bnfold.verify.reference import Evaluator, Noise, Observer

Outputs = Mapping[str, Array]
Run = Callable[[Mapping[str, Array]], Outputs]


class Exact(Protocol):
    """Something that computes the reference's outputs in float64.

    `peak` is how many bytes its values held at once in a run; 0 where none was, or it serves one thread at a time.
    """

    @property
    def peak(self) -> int: ...

    def run(self, feeds: Mapping[str, Array], observe: Observer | None = None) -> Mapping[str, Array]: ...

    def runs(
        self, feeds: Sequence[Mapping[str, Array]], observe: Observer | None = None
    ) -> Sequence[Mapping[str, Array]]: ...


class Reference(Protocol):
    """What a candidate is compared with."""

    unit: float
    outputs: list[str]
    constant: list[str]

    def exact(self) -> Exact:
        """The evaluation in float64; raises `Unsupported` where there is none."""

    def perturbed(self, seed: int) -> Exact:
        """The same with every weight moved by up to one unit roundoff."""

    def session(self, provider: str, *, gate: bool, strict: bool) -> Any:
        """The reference on a provider without optimizations: a session of ONNX Runtime, or a function of feeds."""


@dataclass
class OnnxReference:
    """An ONNX model; `model` is what is evaluated, `source` what ONNX Runtime reads."""

    model: ir.Model
    source: Source

    def __post_init__(self) -> None:
        self.unit = model_unit(self.model)
        self.outputs = [str(v.name) for v in self.model.graph.outputs]
        self.constant: list[str] = []

    def exact(self) -> Evaluator:
        evaluator = Evaluator(self.model)
        self.constant = [str(v.name) for v in evaluator.model.graph.outputs if v in evaluator.fixed]
        return evaluator

    def perturbed(self, seed: int) -> Evaluator:
        return Evaluator(self.model, Noise(seed, self._unit_of))

    def _unit_of(self, value: ir.Value) -> float:
        return UNIT_ROUNDOFF.get(value.dtype, self.unit) if value.dtype is not None else self.unit

    def session(self, provider: str, *, gate: bool, strict: bool) -> Any:
        return runtime.session(self.source, provider, optimize="off", gate=gate, strict=strict)
