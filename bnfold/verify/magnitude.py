"""How large the terms are that a value is summed from: M, the scale that its rounding error is relative to.

    layer                M = |W|∗M(x) + |b|
    BatchNormalization   M = |s|(M(x) + |μ|) + |β|,  s = γ/√(σ² + ε)
    sums                 M = ΣM(xᵢ)
    products             M = ΠM(xᵢ)
    moves, pools         the operator itself, on magnitudes
    activations          at most L·M(x), where L bounds the slope
    constants            at least the smallest normal number, for below it rounding is no longer relative

so that for a Conv with its BatchNormalization M = |s|(|W|∗|x| + |b| + |μ|) + |β|. A computation that adds K terms in
any order errs by at most γ_K·M with γ_K = Ku/(1 − Ku) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.verify.kernels.base import KERNELS, Call, channelwise, is_float
from bnfold.verify.kernels.norms import EPSILON
from bnfold.verify.precision import UNIT_ROUNDOFF, smallest_normal
from bnfold.verify.reference import Evaluator, attributes

# Of the operators that hand magnitudes on by doing what they do; only their first input is a value.
FIRST_ONLY = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand", "Tile",
    "DepthToSpace", "SpaceToDepth", "Resize", "Upsample", "AveragePool", "GlobalAveragePool", "MaxPool",
    "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "Identity", "Dropout", "Cast", "Abs", "Neg",
)  # fmt: skip
EVERY_INPUT = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Concat", "Pad")
# Slopes that no two inputs exceed, and whether the result is exact once the input is.
SLOPES: dict[str, tuple[float, bool]] = {
    "Relu": (1.0, True), "Clip": (1.0, True), "Sigmoid": (0.25, False), "Tanh": (1.0, False),
    "HardSigmoid": (1.0, False), "HardSwish": (1.5, False), "Softplus": (1.0, False), "Softsign": (1.0, False),
    "Elu": (1.0, False), "Gelu": (1.13, False), "Mish": (1.1, False), "LeakyRelu": (1.0, True), "PRelu": (1.0, True),
}  # fmt: skip
SUMS = ("Add", "Sub", "Sum")


@dataclass(frozen=True)
class Bounded:
    """`y` in float64 with its magnitudes `m` and the number of terms `k`; `proves` where γ_K·M bounds the error.

    `traced` says that M was followed through every operator; else it is |y| somewhere, which may be too small.
    """

    y: Array
    m: Array
    k: int
    proves: bool
    traced: bool = True


@dataclass
class _Ledger:
    """Magnitudes of the values seen so far, by value; what is not listed has its own absolute value."""

    known: dict[ir.Value, Array] = field(default_factory=dict)
    terms: int = 0
    proves: bool = True
    traced: bool = True

    def __call__(self, node: ir.Node, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        exact = [None if r is None else np.abs(r) if is_float(r) else r for r in results]
        if not any(is_float(r) for r in results):
            return
        mags = [self._of(v, x) for v, x in zip(node.inputs, inputs, strict=True)]
        found = self._through(node, inputs, mags, results)
        if found is None:
            self.proves = self.traced = False
            return
        self.terms += _terms(node, inputs)
        for value, m, least in zip(node.outputs, found, exact, strict=False):
            if least is not None and is_float(least):
                self.known[value] = np.maximum(m, least)

    def _of(self, value: ir.Value | None, x: Any) -> Any:
        if value in self.known:
            return self.known[value]
        if not is_float(x):
            return x
        stored = None if value is None or value.const_value is None else value.const_value.dtype
        least = smallest_normal(stored.numpy()) if stored in UNIT_ROUNDOFF else 0.0
        return np.maximum(np.abs(x), least)

    def _through(self, node: ir.Node, inputs: Sequence[Any], mags: Sequence[Any], results: Sequence[Any]) -> Any:
        call = Call(node.op_type, attributes(node), node.version or _opset(node), len(results))
        op = node.op_type
        if op in FIRST_ONLY:
            # A negation or an absolute value of magnitudes are those magnitudes.
            return [mags[0]] if op in ("Neg", "Abs") else KERNELS[op](call, [mags[0], *inputs[1:]])
        if op in EVERY_INPUT:
            signed = {name: abs(call.get(name)) for name in ("alpha", "beta", "value") if name in call.attrs}
            return KERNELS[op](replace(call, attrs={**call.attrs, **signed}), mags)
        if op in SUMS:
            return [reduce(np.add, mags)]
        if op == "Mul":
            return [mags[0] * mags[1]]
        if op == "Div":
            with np.errstate(divide="ignore", invalid="ignore"):
                return [mags[0] / np.abs(inputs[1])]
        if op == "BatchNormalization":
            return [_batch_norm(call, mags, inputs[4])]
        if op in SLOPES:
            slope, exact = SLOPES[op]
            self.proves &= exact
            return [_steepest(call, inputs, slope) * mags[0]]
        if op == "Constant":
            return [np.abs(results[0])]
        return None


def bounded(evaluator: Evaluator, feeds: Mapping[str, Array]) -> Bounded:
    """Evaluate a model with one output in float64, with magnitudes."""
    ledger = _Ledger()
    result = evaluator.run(feeds, ledger)
    value = evaluator.model.graph.outputs[0]
    y = result[str(value.name)]
    m = ledger.known.get(value, np.abs(y) if is_float(y) else y)
    return Bounded(y, m, ledger.terms, ledger.proves, ledger.traced)


def gamma(k: int, unit: float) -> float:
    """γ_k = ku/(1 − ku); infinite where nothing is left of the precision."""
    return k * unit / (1.0 - k * unit) if k * unit < 1.0 else math.inf


def _batch_norm(call: Call, mags: Sequence[Array], var: Array) -> Array:
    m, gain, beta, mean = mags[:4]
    scale = gain / np.sqrt(var + call.get("epsilon", EPSILON))
    per = [channelwise(v, m.ndim) for v in (scale, mean, beta)]
    return np.asarray(per[0] * (m + per[1]) + per[2])


def _steepest(call: Call, inputs: Sequence[Any], slope: float) -> Any:
    if call.op in ("LeakyRelu", "Elu"):
        return max(slope, abs(call.get("alpha", slope)))
    if call.op == "PRelu":
        return np.maximum(slope, np.abs(inputs[1]))
    return slope


def _terms(node: ir.Node, inputs: Sequence[Any]) -> int:
    """How many terms a node adds up for one element."""
    if node.op_type in ("Conv", "ConvTranspose"):
        w, transposed = inputs[1], node.op_type == "ConvTranspose"
        return int(math.prod(w.shape[2:]) * (w.shape[0] if transposed else w.shape[1])) + 1
    if node.op_type == "Gemm":
        rows = "transA" in node.attributes and node.attributes["transA"].as_int()
        return int(inputs[0].shape[0 if rows else 1]) + 2
    if node.op_type in ("MatMul", "Einsum"):
        return int(inputs[0].shape[-1]) if node.op_type == "MatMul" else max(int(x.size) for x in inputs)
    if node.op_type in ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"):
        return int(math.prod(inputs[0].shape[2:]) if inputs[0].ndim > 2 else inputs[0].size)
    return {"BatchNormalization": 6, "Sum": len(inputs)}.get(node.op_type, 1)


def _opset(node: ir.Node) -> int:
    graph: Any = node.graph
    return int(graph.opset_imports.get("", 1)) if graph is not None else 1
