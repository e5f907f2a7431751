"""Linear operators `y = W⊛x + b` absorb; the law is written once, over a view of the weight.

    hoist   A∘(W, b) = (s·W, s·b + t)         s, t vary along the view's output channels
    sink    (W, b)∘A = (W·s, b + Σ W·t)       s, t vary along its input channels

A view knows how coefficients of the output and of the input broadcast against the stored weight, and the response
Σ W·t of the output to a constant input. Zero padding (or the overlap of a transposed convolution) makes the response
differ at the border: it blocks a sunk shift, not a scale. An operator without room for a bias passes the shift on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnfold.affine import Affine, ranked
from bnfold.arrays import Float64
from bnfold.graph import Op, derive, tensor
from bnfold.rules.base import Edit, Facts, Judgement, Outcome, Reason, Refusal, Rule, Step, Table, unless_varying
from bnfold.rules.padding import reaches_over
from bnfold.rules.quantized import Weight, either_weight, weight


@dataclass(frozen=True)
class View:
    """One linear operator: which slots hold x, W and b, and how coefficients meet the stored weight.

    `out` and `into` turn coefficients of y (rank `y_rank`) and x (rank `x_rank`) into arrays that broadcast against
    the weight; `respond` maps a constant input to y. `bias` turns coefficients of y into the shape of b.
    """

    weight: Weight
    x: int
    slot: int
    x_rank: int
    y_rank: int
    x_axes: frozenset[int]
    y_axes: frozenset[int]
    out: Callable[[Float64], Float64]
    into: Callable[[Float64], Float64]
    respond: Callable[[Float64], Float64]
    bias: Callable[[Float64], Float64] | None = None
    bias_slot: int = 2
    bias_shape: tuple[int, ...] = ()
    bordered: bool = False


Viewer = Callable[[Op], View | Refusal]


def hoisting(viewer: Viewer) -> Judgement:
    """Build the hoist of the operators that `viewer` reads."""

    def hoist(op: Op, demands: Facts) -> Outcome:
        view, wanted = viewer(op), demands[0]
        if isinstance(view, Refusal):
            return view
        varying = unless_varying(op, wanted, view.y_rank, view.y_axes)
        if varying:
            return varying.on(op.output())
        wanted = wanted.at(view.y_rank)
        edits = view.weight.scaled(view.out(wanted.scale), "s·W")
        if isinstance(edits, Refusal):
            return edits
        if view.bias is None:
            return Step(edits=edits, rest={0: wanted.shifting}, absorbs=True)
        if op.has(view.bias_slot) and tensor(op.input(view.bias_slot)) is None:
            part = _on_bias(op, view, wanted)
            return part if isinstance(part, Refusal) else Step({view.bias_slot: part}, edits, absorbs=True)
        return Step(edits=(*edits, *_bias_edits(op, view, wanted, "s·b + t")), absorbs=True)

    return hoist


def _on_bias(op: Op, view: View, affine: Affine) -> Affine | Refusal:
    """Express an affine of the output on a bias that is computed, β·b: s·(β·b) + t = β·(s·b + t/β)."""
    assert view.bias is not None
    known, beta, affine = op.shape(view.bias_slot), _beta(op), affine.at(view.y_rank)
    if known is not None and beta != 0.0:
        part = Affine.of(view.bias(affine.scale), view.bias(affine.shift) / beta)
        if all(axis >= 0 and known[axis] == part.shape[axis - len(known)] for axis in part.axes(len(known))):
            return part
    detail = f"the bias of {op.type} can't take the affine of its output"
    return Refusal(Reason.AXIS, detail=detail).on(op.input(view.bias_slot))


def _beta(op: Op) -> float:
    return float(op.attr("beta", 1.0))


def sinking(viewer: Viewer) -> Judgement:
    """Build the sink of the operators that `viewer` reads."""

    def sink(op: Op, facts: Facts) -> Outcome:
        view = viewer(op)
        if isinstance(view, Refusal):
            return view
        if set(facts) != {view.x}:
            return Refusal(Reason.VARIABLE, detail=f"{op.type} computes its weight or bias at run time")
        varying = unless_varying(op, facts[view.x], view.x_rank, view.x_axes)
        if varying:
            return varying.on(op.input(view.x))
        fact = facts[view.x].at(view.x_rank)
        if fact.shifts and view.bordered:
            return Refusal(Reason.PADDING, detail=f"{op.type} pads or overlaps at its border").on(op.input(view.x))
        edits = view.weight.scaled(view.into(fact.scale), "W·s")
        if isinstance(edits, Refusal):
            return edits
        if not fact.shifts:
            return Step(edits=edits, absorbs=True)
        response = Affine.of(1.0, view.respond(fact.shift))
        if view.bias is None:
            return Step(edits=edits, passed={0: response}, absorbs=True)
        value = op.input(view.bias_slot)
        if value is not None and tensor(value) is None:
            return Refusal(Reason.VARIABLE, detail=f"the bias of {op.type} is not a constant").on(value)
        return Step(edits=(*edits, *_bias_edits(op, view, response, "b + ΣW·t")), absorbs=True)

    return sink


def _bias_edits(op: Op, view: View, affine: Affine, formula: str) -> tuple[Edit, ...]:
    """Map a constant bias by `affine`; Gemm's beta goes into it, so that the new bias stands by itself."""
    assert view.bias is not None
    value, beta = op.input(view.bias_slot), _beta(op)
    if value is None and not affine.shifts:
        return ()
    rank = affine.at(view.y_rank)
    step = Affine(view.bias(rank.scale), view.bias(rank.shift)) @ Affine.of(beta, 0.0)
    edits = [Edit(op.node, view.bias_slot, derive(value, step, (view.bias_shape, view.weight.dtype)), formula)]
    if beta != 1.0:
        edits.append(Edit(op.node, "beta", 1.0, "1"))
    return tuple(edits)


def _convolution(op: Op) -> View | Refusal:
    """Conv stores W[group·out, in, taps…], ConvTranspose W[group·in, out, taps…]: one layout, roles exchanged."""
    held = weight(op, 1)
    if isinstance(held, Refusal):
        return held
    dims, groups, transposed = held.shape, int(op.attr("group", 1)), op.type == "ConvTranspose"
    rank, major, minor, taps = len(dims), dims[0] // groups, dims[1], math.prod(dims[2:])

    def along_major(a: Float64) -> Float64:
        return a.reshape([-1] + [1] * (rank - 1))

    def along_minor(a: Float64) -> Float64:
        if a.size == 1:
            return a.reshape([1] * rank)
        rows = 1 if groups == 1 else major
        spread = np.broadcast_to(a.reshape(groups, 1, minor), (groups, rows, minor))
        return spread.reshape([groups * rows, minor] + [1] * (rank - 2))

    def respond(t: Float64) -> Float64:
        blocks = held.values().reshape(groups, major, minor, taps).sum(axis=3)
        if transposed:
            blocks = blocks.transpose(0, 2, 1)
        vector = np.broadcast_to(t.reshape(-1), (groups * blocks.shape[2],)).reshape(groups, -1, 1)
        response: Float64 = np.matmul(blocks, vector)
        return response.reshape([1, -1] + [1] * (rank - 2))

    strides = any(stride != 1 for stride in op.attr("strides", ()) or ())
    resized = any(op.attr("output_padding", ()) or ()) or op.attr("output_shape") is not None
    return View(
        held, x=0, slot=1, x_rank=rank, y_rank=rank, x_axes=frozenset({1}), y_axes=frozenset({1}),
        out=along_minor if transposed else along_major, into=along_major if transposed else along_minor,
        respond=respond, bias=lambda a: a.reshape(-1), bias_shape=(groups * minor if transposed else dims[0],),
        bordered=reaches_over(op, dims[2:]) or (transposed and (taps > 1 or strides or resized)),
    )  # fmt: skip


def _product(op: Op) -> View | Refusal:
    """MatMul and Gemm with a constant on either side: coefficients broadcast against it as they do against y.

    Each axis of the constant that the product keeps is an axis of y, counted from the back; the contracted axis is
    reached by exchanging the last two.
    """
    gemm = op.type == "Gemm"
    found = either_weight(op)
    if isinstance(found, Refusal):
        return found
    held, slot = found
    x_rank, y_shape = (2 if gemm else op.rank(1 - slot)), op.out_shape()
    y_rank = 2 if gemm else None if y_shape is None else len(y_shape)
    if x_rank is None or y_rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE, detail=f"the rank of an operand of {op.type} is not known")
    dims = held.shape
    if len(dims) < 2 or x_rank < 2:
        return _vector_product(held, slot, x_rank, y_rank)
    w_flip, x_flip = (bool(op.attr(name, 0)) for name in (("transB", "transA") if slot == 1 else ("transA", "transB")))
    alpha = float(op.attr("alpha", 1.0))

    def swapped(a: Float64) -> Float64:
        return np.swapaxes(ranked(a, max(a.ndim, 2)), -1, -2)

    def out(a: Float64) -> Float64:
        return ranked(swapped(a) if w_flip else a, len(dims))

    def into(a: Float64) -> Float64:
        # x's contracted axis is the last for a constant on the right, the one before for a constant on the left
        upright = swapped(a) if x_flip else a
        return ranked(upright if w_flip else swapped(upright), len(dims))

    def respond(t: Float64) -> Float64:
        matrix = swapped(held.values()) if w_flip else held.values()
        shift = swapped(ranked(t, x_rank)) if x_flip else ranked(t, x_rank)
        inner = matrix.shape[-2] if slot == 1 else matrix.shape[-1]
        if slot == 1:
            response: Float64 = np.matmul(np.broadcast_to(shift, (*shift.shape[:-1], inner)), matrix)
        else:
            response = np.matmul(matrix, np.broadcast_to(shift, (*shift.shape[:-2], inner, 1)))
        return alpha * response

    batch = {y_rank - offset for offset in range(3, len(dims) + 1) if dims[-offset] != 1}
    contracted = x_rank - 1 if (slot == 1) != x_flip else x_rank - 2
    outputs = dims[0] if (slot == 1) == w_flip else dims[1]
    return View(
        held, x=1 - slot, slot=slot, x_rank=x_rank, y_rank=y_rank,
        x_axes=frozenset({contracted, *(axis - y_rank + x_rank for axis in batch if axis - y_rank + x_rank >= 0)}),
        y_axes=frozenset({y_rank - 1 if slot == 1 else y_rank - 2, *batch}),
        out=out, into=into, respond=respond,
        bias=(lambda a: a[0] if a.shape[0] == 1 else a) if gemm else None,
        bias_shape=(outputs,) if slot == 1 else (outputs, 1),
    )  # fmt: skip


def _vector_product(held: Weight, slot: int, x_rank: int, y_rank: int) -> View:
    """MatMul where either operand is a vector, which the product contracts whole: y lacks that axis."""
    contracted = x_rank - 1 if slot == 1 or x_rank == 1 else x_rank - 2
    vector = len(held.shape) == 1
    mine = 0 if vector else len(held.shape) - (2 if slot == 1 else 1)
    kept = frozenset() if vector else frozenset(range(y_rank))

    def onto(a: Float64, axis: int) -> Float64:
        return a.reshape([-1 if k == axis else 1 for k in range(len(held.shape))])

    def out(a: Float64) -> Float64:
        # All axes of the constant but the contracted one are those of y, in order.
        return ranked(a, 1).reshape(1) if vector else np.expand_dims(ranked(a, y_rank), mine)

    def respond(t: Float64) -> Float64:
        t = ranked(t, x_rank)
        full = np.broadcast_to(t, [held.shape[mine] if k == contracted else n for k, n in enumerate(t.shape)])
        response: Float64 = np.asarray(np.matmul(full, held.values()) if slot == 1 else np.matmul(held.values(), full))
        return response

    return View(
        held, x=1 - slot, slot=slot, x_rank=x_rank, y_rank=y_rank, x_axes=frozenset({contracted}), y_axes=kept,
        out=out, into=lambda a: onto(ranked(a, x_rank), mine), respond=respond,
    )  # fmt: skip


VIEWS: dict[str, Viewer] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _product,
    "MatMul": _product,
}

TABLE: Table = {op_type: Rule("linear", hoisting(viewer), sinking(viewer)) for op_type, viewer in VIEWS.items()}
