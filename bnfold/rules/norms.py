"""Normalizations end in an affine of their own: they hoist into their gamma and beta.

    hoist   gamma′ = s·gamma    beta′ = s·beta + t

The affine must vary only along the axes of gamma: channels (InstanceNormalization, GroupNormalization from opset 21),
groups (GroupNormalization before), the normalized axes (LayerNormalization, RMSNormalization, which has no beta and
passes the shift on). Nothing sinks: scale and shift of the input are normalized away only up to epsilon.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import Array, ranked
from bnfold.graph import Op
from bnfold.rules.base import Facts, Outcome, Reason, Refusal, Rule, Table
from bnfold.rules.linear import View, hoisting
from bnfold.rules.quantized import Weight, weight


def _response(t: Array) -> Array:
    raise NotImplementedError("a normalization has no response to a constant input")


def _view(op: Op, held: Weight, rank: int, axes: frozenset[int], beta: bool) -> View:
    def onto(a: Array) -> Array:
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

    def one_a_group(a: Array) -> Array:
        return a if a.shape[1] == 1 else a.reshape(a.shape[0], groups, -1, *a.shape[2:])[:, :, 0]

    def uniform(a: Array) -> bool:
        blocks = a.reshape(groups, -1) if a.size > 1 else a.reshape(1, 1)
        return bool(np.all(blocks == blocks[:, :1]))

    if not (uniform(wanted.scale) and uniform(wanted.shift)):
        return Refusal(Reason.AXIS, detail="the affine varies within a group, gamma does not").on(op.output())
    return hoisting(_channels)(op, {0: wanted.map(one_a_group)})  # type: ignore[return-value]


TABLE: Table = {
    "InstanceNormalization": Rule("norms", hoist=hoisting(_channels)),
    "GroupNormalization": Rule("norms", hoist=_group_hoist),
    "LayerNormalization": Rule("norms", hoist=_layer_hoist),
    "RMSNormalization": Rule("norms", hoist=_layer_hoist),
}
