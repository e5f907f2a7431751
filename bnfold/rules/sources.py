"""Sources: operators that *are* an affine of one input.

    BatchNormalization (inference)   s = gamma/√(running_var + epsilon)    t = beta − running_mean·s
    x·c  c·x  x/c                     s = c or 1/c                          t = 0
    x+c  c+x  x−c  c−x  −x            s = ±1                                t = ±c or 0

A source met on a route is composed and deleted. It must be floating and finite, and must not broadcast its input to
a larger shape: axes are compared, never sizes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.affine import Affine, along, ranked
from bnfold.arrays import Float64
from bnfold.derived import foldable_dtype
from bnfold.graph import BATCH_NORM, Op, dtype, is_floating, overridable
from bnfold.rules.base import Reason, Refusal
from bnfold.rules.fused import fused

BATCH_NORM_COST = 2
SOURCES = frozenset({BATCH_NORM, "Neg", "Mul", "Add", "Sum", "Sub", "Div"})


@dataclass(frozen=True)
class Source:
    """An operator that is `affine` of its input `slot`, and what it costs in elementwise passes."""

    slot: int
    affine: Affine
    cost: int


def source(op: Op) -> Source | Refusal | None:
    """Return the affine that a node is, why it can't be one, or None where its type never is."""
    if op.type not in SOURCES:
        return None
    if op.type == BATCH_NORM:
        return _batch_norm(op)
    if op.type == "Neg":
        return Source(0, Affine.of(-1.0, 0.0), 1) if is_floating(op.output()) else None
    return fused(op) or _arithmetic(op) if len(op.node.inputs) == 2 else None


def _batch_norm(op: Op) -> Source | Refusal:
    x = op.input(0)
    if not foldable_dtype(dtype(x)):
        return Refusal(Reason.NOT_FLOATING).on(x)
    if (
        op.attr("training_mode", 0) != 0
        or (op.opset < 7 and not op.attr("is_test", 0))
        or any(statistic.name for statistic in op.node.outputs[1:])  # to name them as outputs is to train
    ):
        return Refusal(Reason.TRAINING_MODE).on(op.output())
    parameters: list[Float64] = []
    for slot, name in enumerate(("gamma", "beta", "running_mean", "running_var"), start=1):
        array = op.const(slot)
        if array is None:
            reason = Reason.OVERRIDABLE if overridable(op.input(slot)) else Reason.NOT_CONSTANT
            return Refusal(reason, detail=f"{name} is not a constant").on(op.input(slot))
        parameters.append(array)
    kinds = [dtype(value) for value in op.node.inputs[:5] if value is not None]
    if not _typed(op.opset, kinds):
        detail = f"operands of types {', '.join(str(kind) for kind in kinds)}"
        return Refusal(Reason.MALFORMED, detail=detail).on(op.output())
    shape = op.shape(0)
    if shape is None or len(shape) < 2:
        return Refusal(Reason.UNKNOWN_SHAPE, detail="the rank of the input is not known").on(x)
    rank, spatial = len(shape), bool(op.attr("spatial", 1))
    shapes = sorted({array.shape for array in parameters})
    if len(shapes) > 1 or (spatial and isinstance(shape[1], int) and shapes != [(shape[1],)]):
        detail = f"parameters of shape {', '.join(map(str, shapes))} for {shape[1]} channels"
        return Refusal(Reason.MALFORMED, detail=detail).on(op.output())
    gamma, beta, mean, var = parameters
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + op.attr("epsilon", np.float32(1e-5)))
        shift = beta - mean * scale
    if spatial:
        affine = Affine.of(along(scale, 1, rank), along(shift, 1, rank))
    else:
        affine = Affine.of(ranked(scale, rank), ranked(shift, rank))
    if not affine.finite:
        bad = int((~(np.isfinite(scale) & np.isfinite(shift))).sum())
        return Refusal(Reason.NON_FINITE, detail=f"{bad} channels have no finite scale and shift").on(op.input(4))
    return Source(0, affine, BATCH_NORM_COST)


def _typed(opset: int, kinds: Sequence[ir.DataType | None]) -> bool:
    """One type for all; the statistics have their own from opset 14 on, gamma and beta from 15 on (ONNX spec)."""
    groups = [kinds[:1], kinds[1:3], kinds[3:]] if opset >= 15 else [kinds[:3], kinds[3:]] if opset >= 14 else [kinds]
    known = [{kind for kind in group if kind is not None} for group in groups]
    return all(len(group) < 2 and all(map(foldable_dtype, group)) for group in known)


def _arithmetic(op: Op) -> Source | Refusal | None:
    if not is_floating(op.output()) or "broadcast" in op.node.attributes:
        return None
    left, right = op.const(0), op.const(1)
    if left is None and right is not None:
        slot, c = 0, right
    elif right is None and left is not None and op.type != "Div":
        slot, c = 1, left
    else:
        return None
    one, zero = np.ones(()), np.zeros(())
    with np.errstate(all="ignore"):
        laws: dict[str, tuple[Float64, Float64]] = {
            "Mul": (c, zero),
            "Div": (1.0 / c, zero),
            "Add": (one, c),
            "Sum": (one, c),
            "Sub": (one, -c) if slot == 0 else (-one, c),
        }
    scale, shift = laws[op.type]
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return Refusal(Reason.NON_FINITE, detail=f"{op.type} by a constant that is not finite").on(op.input(1 - slot))
    return _fits(op, slot, c.shape) or Source(slot, Affine.of(scale, shift), 1)


def _fits(op: Op, slot: int, constant: tuple[int, ...]) -> Refusal | None:
    """Refuse a constant that would broadcast the variable operand to a larger shape."""
    if not constant:
        return None
    known = op.shape(slot)
    if known is None:
        return Refusal(Reason.UNKNOWN_SHAPE, detail="the rank of the operand is not known").on(op.input(slot))
    if len(constant) > len(known):
        return Refusal(Reason.ENLARGES).on(op.output())
    for size, dim in zip(reversed(constant), reversed(known), strict=False):
        if size != 1 and dim != size:
            reason = Reason.ENLARGES if dim == 1 else Reason.UNKNOWN_SHAPE
            return Refusal(reason, detail=f"a constant of size {size} meets a dimension {dim}").on(op.output())
    return None
