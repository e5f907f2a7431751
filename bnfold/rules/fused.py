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
    if op.type not in ("Mul", "Add", "Div"):
        return None
    gelu = _halves(op.node) or _scales(op.node) or _gate(op.output())
    whole = "GELU" if gelu else "layer normalization" if _rescales(op.node) else None
    if whole is None:
        return None
    detail = f"it is part of a {whole}, which runtimes compute in one step"
    return Refusal(Reason.BARRIER, detail=detail).on(op.output())


def _halves(node: ir.Node) -> bool:
    """Whether the node is the multiplication by ½ in a GELU, before or after the product with the gate."""
    if node.op_type != "Mul" or not any(_is(value, 0.5) for value in node.inputs):
        return False
    if any(_gate(factor) for value in node.inputs for factor in _operands(value, "Mul")):
        return True
    users = [user for user, _ in node.outputs[0].uses()]
    return bool(users) and all(user.op_type == "Mul" and any(map(_gate, user.inputs)) for user in users)


def _scales(node: ir.Node) -> bool:
    """Whether the node is the constant factor of what a GELU's gate is computed of."""
    users = [user for user, _ in node.outputs[0].uses()]
    gates = [gate for user in users if user.op_type in CURVES for gate, _ in user.outputs[0].uses()]
    return len(users) == len(gates) == 1 and _gate(gates[0].outputs[0]) and node.op_type != "Add"


def _gate(value: ir.Value | None) -> bool:
    """Whether the value is 1 + erf(…) or 1 + tanh(…)."""
    parts = _operands(value, "Add")
    return any(_is(part, 1.0) for part in parts) and any(_made_by(part, *CURVES) for part in parts)


def _rescales(node: ir.Node) -> bool:
    """Whether the node applies gamma or beta to a normalized value."""
    if node.op_type == "Mul":
        return any(map(_normalized, node.inputs))
    factors = [factor for value in node.inputs for factor in _operands(value, "Mul")]
    return node.op_type == "Add" and any(map(_normalized, factors))


def _normalized(value: ir.Value | None) -> bool:
    """Whether the value is … / √(mean(…) + ε)."""
    deviation = [part for root in _operands(value, "Div")[1:] for part in _operands(root, "Sqrt")]
    return any(_made_by(part, "ReduceMean") for variance in deviation for part in _operands(variance, "Add"))


def _is(value: ir.Value | None, number: float) -> bool:
    held = tensor(value)
    return held is not None and held.size == 1 and float(held.numpy().reshape(())) == number


def _made_by(value: ir.Value | None, *op_types: str) -> bool:
    node = None if value is None else value.producer()
    return node is not None and Op(node).type in op_types


def _operands(value: ir.Value | None, op_type: str) -> tuple[ir.Value | None, ...]:
    """Return the operands of what computes the value, if that is a node of this type."""
    node = None if value is None else value.producer()
    return tuple(node.inputs) if node is not None and Op(node).type == op_type else ()
