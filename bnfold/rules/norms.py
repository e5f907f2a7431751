"""Normalizations end in an affine of their own, into which they hoist; a shift in front of them disappears.

    hoist   gamma′ = s·gamma    beta′ = s·beta + t
    sink    f(s·x + t) = f(s·x)

On a hoist the affine must vary only along the axes of gamma: channels (InstanceNormalization, GroupNormalization from
opset 21), groups (GroupNormalization before), the normalized axes (LayerNormalization, RMSNormalization, which has no
beta and passes the shift on). On a sink t must be one number for all that is normalized together: a mean takes it away,
and a Softmax divides it out as exp(t). A scale disappears only up to epsilon, so it stays in front.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnfold.affine import ranked
from bnfold.arrays import Float64
from bnfold.graph import Op, Shape
from bnfold.rules.base import Facts, Judgement, Outcome, Reason, Refusal, Rule, Step, Table
from bnfold.rules.linear import View, hoisting
from bnfold.rules.quantized import Weight, weight


def _response(t: Float64) -> Float64:
    raise NotImplementedError("a normalization has no response to a constant input")


def _view(op: Op, held: Weight, rank: int, axes: frozenset[int], beta: bool) -> View:
    def onto(a: Float64) -> Float64:
        """Bring coefficients of the output, which vary only along `axes`, to the shape of gamma."""
        kept = a.reshape([size for axis, size in enumerate(a.shape) if axis in axes])
        return ranked(kept, len(held.shape))

    return View(
        held, x=0, slot=1, x_rank=rank, y_rank=rank, x_axes=frozenset(), y_axes=axes,
        out=onto, into=onto, respond=_response, bias=onto if beta else None, bias_shape=held.shape,
    )  # fmt: skip


def _channels(op: Op) -> View | Refusal:
    held, rank = weight(op, 1), op.rank(0)
    if isinstance(held, Refusal):
        return held
    if rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE).on(op.input(0))
    return _view(op, held, rank, frozenset({1}), beta=True)


def _trailing(op: Op) -> View | Refusal:
    held, rank = weight(op, 1), op.rank(0)
    if isinstance(held, Refusal):
        return held
    if rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE).on(op.input(0))
    first = max(int(op.attr("axis", -1)) % rank, rank - len(held.shape))
    return _view(op, held, rank, frozenset(range(first, rank)), beta=op.type == "LayerNormalization")


def _layer_hoist(op: Op, demands: Facts) -> Outcome:
    """LayerNormalization's extra outputs are taken before gamma and beta, so a demand on them is refused."""
    if set(demands) != {0}:
        return Refusal(Reason.BARRIER, detail="mean and deviation of a normalization pass no affine").on(op.output(1))
    return hoisting(_trailing)(op, demands)  # type: ignore[return-value]


def _group_hoist(op: Op, demands: Facts) -> Outcome:
    """Before opset 21 gamma and beta are per group: the affine must agree within each."""
    if op.opset >= 21:
        return hoisting(_channels)(op, demands)  # type: ignore[return-value]
    rank, groups = op.rank(0), int(op.attr("num_groups", 1))
    if rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE).on(op.input(0))
    wanted = demands[0].at(rank)
    if wanted.axes(rank) - {1}:
        return Refusal(Reason.AXIS, detail="GroupNormalization scales groups of channels").on(op.output())

    def one_a_group(a: Float64) -> Float64:
        return a if a.shape[1] == 1 else a.reshape(a.shape[0], groups, -1, *a.shape[2:])[:, :, 0]

    def uniform(a: Float64) -> bool:
        blocks = a.reshape(groups, -1) if a.size > 1 else a.reshape(1, 1)
        return bool(np.all(blocks == blocks[:, :1]))

    if not (uniform(wanted.scale) and uniform(wanted.shift)):
        return Refusal(Reason.AXIS, detail="the affine varies within a group, gamma does not").on(op.output())
    return hoisting(_channels)(op, {0: wanted.map(one_a_group)})  # type: ignore[return-value]


Together = Callable[[Op, Shape], frozenset[int]]


def _spatial(op: Op, shape: Shape) -> frozenset[int]:
    return frozenset(range(2, len(shape)))


def _whole_groups(op: Op, shape: Shape) -> frozenset[int]:
    """Channels share a mean unless each is a group of its own."""
    return frozenset(range(2 if shape[1] == op.attr("num_groups") else 1, len(shape)))


def _last(op: Op, shape: Shape) -> frozenset[int]:
    return frozenset(range(int(op.attr("axis", -1)) % len(shape), len(shape)))


def _classes(op: Op, shape: Shape) -> frozenset[int]:
    """Before opset 13 all axes from `axis` on were one."""
    if op.opset >= 13:
        return frozenset({int(op.attr("axis", -1)) % len(shape)})
    return frozenset(range(int(op.attr("axis", 1)) % len(shape), len(shape)))


def _unshifted(together: Together) -> Judgement:
    """Build the sink of an operator that takes the shift of what it normalizes `together` away."""

    def sink(op: Op, facts: Facts) -> Outcome:
        if set(facts) != {0}:
            return Refusal(Reason.VARIABLE, detail=f"a parameter of {op.type} is computed at run time")
        shape, fact = op.shape(0), facts[0]
        if shape is None:
            return Refusal(Reason.UNKNOWN_SHAPE).on(op.input(0))
        if op.used(1):
            return Refusal(Reason.READERS, detail="the mean is read, which has the shift").on(op.output(1))
        across = fact.shifting.axes(len(shape)) & together(op, shape)
        if across:
            detail = f"the shift varies along axis {min(across)}, which {op.type} normalizes"
            return Refusal(Reason.AXIS, detail=detail).on(op.input(0))
        blocked = Refusal(Reason.BARRIER, detail=f"{op.type} takes no scale") if fact.scales else None
        return Step(rest={0: fact.scaling}, absorbs=fact.shifts, blocked=blocked)

    return sink


TABLE: Table = {
    "InstanceNormalization": Rule("norms", hoisting(_channels), _unshifted(_spatial)),
    "GroupNormalization": Rule("norms", _group_hoist, _unshifted(_whole_groups)),
    "LayerNormalization": Rule("norms", _layer_hoist, _unshifted(_last)),
    "RMSNormalization": Rule("norms", _layer_hoist),
    "Softmax": Rule("norms", sink=_unshifted(_classes)),
    "LogSoftmax": Rule("norms", sink=_unshifted(_classes)),
}
