"""Constants inside what runtimes compute in one step, where it stands in the graph as exporters write it.

    GELU                   ½·x·(1 + f(c·…))  with f = erf or tanh, the ½ anywhere in the product
    layer normalization    (x − mean)/√(variance + ε)·gamma + beta

To absorb such a constant saves one pass over the value and costs the fusion, which saves several: it is a barrier.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.graph import Op, tensor
from bnfold.rules.base import Reason, Refusal

CURVES = ("Erf", "Tanh")


def fused(op: Op) -> Refusal | None:
    """Refuse a multiplication or addition by a constant that belongs to an activation or a normalization."""
    whole = "GELU" if _halves(op) else "layer normalization" if _rescales(op) else None
    if whole is None:
        return None
    detail = f"it is part of a {whole}, which runtimes compute in one step"
    return Refusal(Reason.BARRIER, detail=detail).on(op.output())


def _halves(op: Op) -> bool:
    """Whether this is the multiplication by ½ in a GELU, wherever in the product with the gate it stands."""
    if op.type != "Mul" or not any(_is(value, 0.5) for value in op.node.inputs):
        return False
    makers = _makers(op)
    if any(map(_gate, makers)) or any(map(_gate, _makers(*makers, of="Mul"))):
        return True
    users = [Op(user) for user, _ in op.output().uses()]
    return bool(users) and all(any(map(_gate, _makers(user, of="Mul"))) for user in users)


def _gate(op: Op) -> bool:
    """Whether this is 1 + erf(…) or 1 + tanh(…)."""
    return any(maker.type in CURVES for maker in _makers(op, of="Add")) and any(_is(x, 1.0) for x in op.node.inputs)


def _rescales(op: Op) -> bool:
    """Whether this applies gamma or beta to a normalized value."""
    scaled = _makers(op, of="Add")
    return any(map(_normalized, _makers(op, *scaled, of="Mul")))


def _normalized(op: Op) -> bool:
    """Whether this is … / √(mean(…) + ε)."""
    root = op.maker(1) if op.type == "Div" else None
    sums = [] if root is None else _makers(root, of="Sqrt")
    return any(variance.type == "ReduceMean" for variance in _makers(*sums, of="Add"))


def _is(value: ir.Value | None, number: float) -> bool:
    held = tensor(value)
    return held is not None and held.size == 1 and float(held.numpy().reshape(())) == number


def _makers(*ops: Op, of: str | None = None) -> list[Op]:
    """Return what computes the operands of these, or of those of one type."""
    found = (op.maker(slot) for op in ops if of in (None, op.type) for slot in range(len(op.node.inputs)))
    return [maker for maker in found if maker is not None]
