"""Moves rearrange, drop or repeat elements, so the coefficients take the same way as the values.

    sink    f(A(x)) = f(A)(f(x))             run the move on the coefficients
    hoist   A(f(x)) = f(f⁻¹(A)(x))           run its inverse; elements that f drops keep the identity

Only the axes along which the affine varies must be traceable: a uniform axis (size 1) passes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnfold.affine import Affine, ranked
from bnfold.arrays import Float64
from bnfold.graph import Op, Shape
from bnfold.rules.base import Facts, Outcome, Reason, Rule, Step, Table
from bnfold.rules.tracing import Untraceable, known, regroup, sized


@dataclass(frozen=True)
class Move:
    """How coefficients pass one operator: `forward` as its input does, `backward` as its output came from it.

    `backward` is given the value that dropped elements take: one in a scale, zero in a shift.
    """

    forward: Callable[[Float64], Float64]
    backward: Callable[[Float64, float], Float64]


def _reshape(op: Op) -> Move:
    source, target = known(op.shape(0), "input"), known(op.out_shape(), "output")
    return Move(lambda a: regroup(a, source, target), lambda a, fill: regroup(a, target, source))


def _transpose(op: Op) -> Move:
    rank = len(known(op.shape(0), "input"))
    order = list(op.attr("perm") or reversed(range(rank)))
    if sorted(order) != list(range(rank)):
        raise Untraceable(Reason.MALFORMED, f"{order} permutes no {rank} axes")
    inverse = np.argsort(order)
    return Move(lambda a: np.transpose(ranked(a, rank), order), lambda a, fill: np.transpose(ranked(a, rank), inverse))


def _depth_to_space(op: Op) -> Move:
    source, target = known(op.shape(0), "input"), known(op.out_shape(), "output")
    block = int(op.attr("blocksize", 1))
    if op.type == "SpaceToDepth":
        return _flipped(_blocks(target, source, block, "DCR"))
    return _blocks(source, target, block, str(op.attr("mode", "DCR")))


def _blocks(deep: Shape, wide: Shape, block: int, mode: str) -> Move:
    """DepthToSpace as Reshape, Transpose, Reshape; SpaceToDepth is its inverse (depth-column-row order)."""
    n, c, h, w = deep
    channels = sized(c) // (block * block)
    if mode == "CRD":
        split, order = (n, channels, block, block, h, w), (0, 1, 4, 2, 5, 3)
    else:
        split, order = (n, block, block, channels, h, w), (0, 3, 4, 1, 5, 2)
    mixed = tuple(split[axis] for axis in order)
    inverse = np.argsort(order)
    return Move(
        lambda a: regroup(np.transpose(regroup(a, deep, split), order), mixed, wide),
        lambda a, fill: regroup(np.transpose(regroup(a, wide, mixed), inverse), split, deep),
    )


def _flipped(move: Move) -> Move:
    return Move(lambda a: move.backward(a, 0.0), lambda a, fill: move.forward(a))


def _backward(move: Move, affine: Affine) -> Affine:
    return Affine.of(move.backward(affine.scale, 1.0), move.backward(affine.shift, 0.0))


def rule(move_of: Callable[[Op], Move], family: str = "moves") -> Rule:
    """Build both judgements of an operator with one moved input (slot 0) and one output."""

    def hoist(op: Op, demands: Facts) -> Outcome:
        try:
            return Step(passed={0: _backward(move_of(op), demands[0])})
        except Untraceable as stop:
            return stop.refusal.on(op.output())

    def sink(op: Op, facts: Facts) -> Outcome:
        try:
            return Step(passed={0: facts[0].map(move_of(op).forward)})
        except Untraceable as stop:
            return stop.refusal.on(op.input(0))

    return Rule(family, hoist, sink)


TABLE: Table = {
    "Reshape": rule(_reshape),
    "Flatten": rule(_reshape),
    "Squeeze": rule(_reshape),
    "Unsqueeze": rule(_reshape),
    "Transpose": rule(_transpose),
    "DepthToSpace": rule(_depth_to_space),
    "SpaceToDepth": rule(_depth_to_space),
}
