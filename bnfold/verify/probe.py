"""The constants that a window amounts to, found by its responses: to zero the bias, to unit impulses the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.graph import shape
from bnfold.verify.formulas import LINEAR, stored
from bnfold.verify.magnitude import bounded
from bnfold.verify.precision import UNIT_ROUNDOFF, smallest_subnormal
from bnfold.verify.reference import Evaluator
from bnfold.verify.windows import Piece, Window, Windows, extracted

# Multiplications that probing a window may cost.
PROBE_COST = 1e9
PROBES_AT_ONCE = 256
# What float64 itself rounds away where responses are subtracted.
EXACT = 2.0**-45
AFFINE = (
    *LINEAR, "BatchNormalization", "Add", "Sub", "Mul", "Div", "Sum", "Neg", "Identity", "AveragePool", "Constant",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Dropout", "Pad", "Concat", "Slice", "GlobalAveragePool",
)  # fmt: skip
PRODUCTS = ("Mul", "Div", "MatMul", "Gemm", "Conv", "ConvTranspose")


@dataclass(frozen=True)
class Recomputed:
    """One window proven or refuted: errors over their limits, and the worst-case difference `slope`·B + `offset`.

    `signs` are the inputs that reach it, at B = 1, in the order of the weight. `rescaled` says that each output
    channel as a whole is a positive multiple of what it should be: the layer that reads it may take that back. Of a
    `decisive` constant `weight` is the error over its limit, and `at` names the node in a wider window that has it.
    """

    name: str
    weight: float
    bias: float
    slope: float
    offset: float
    channel: int
    signs: Array = field(repr=False)
    rescaled: bool = False
    decisive: bool = False
    at: str = ""

    @property
    def part(self) -> str:
        """What is furthest off."""
        return "constant" if self.decisive else "weight" if self.weight >= self.bias else "bias"

    @property
    def ratio(self) -> float:
        return max(self.weight, self.bias)

    @property
    def moved(self) -> bool:
        """Whether the layer is out of tolerance only by a positive scale of each output channel."""
        return self.ratio > 1.0 and self.rescaled

    def witness(self, bound: float = 1.0) -> Array:
        """The input |x| ≤ `bound` at which the two sides differ most, up to a common sign."""
        return self.signs * bound

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "weight_ratio": self.weight, "bias_ratio": self.bias, "slope": self.slope,
            "offset": self.offset, "channel": self.channel,
            "witness": f"x = ±B·sign(W′ − W*) of channel {self.channel}",
        }  # fmt: skip


def over(error: Array, limit: Array) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0.0, 0.0, np.abs(error) / limit)
    return float(np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).max(initial=0.0))


def probed(windows: Windows, window: Window, kind: ir.DataType, factors: tuple[float, float]) -> Recomputed | None:
    """Hold the responses of both sides to zero and to unit impulses against each other."""
    sides = window.original, window.candidate
    feeds = {str(v.name): size for v in window.original.feeds if (size := _patch(v, window)) is not None}
    theirs = {v: str(windows.pairing.twins[v].name) for v in window.candidate.feeds}
    if len(feeds) != len(window.original.feeds) or set(theirs.values()) != feeds.keys():
        return None
    if not all(_affine(n) for side in sides for n in _live(side)):
        return None
    terms, positions = sum(map(math.prod, feeds.values())), max(math.prod(size[1:]) for size in feeds.values())
    if sum(_numbers(n) for side in sides for n in _live(side)) * terms * positions * 2.0 > PROBE_COST:
        return None
    ranks = {name: len(size) + 1 for name, size in feeds.items()}
    names = {v: str(v.name) for v in window.original.feeds}
    mine = Evaluator(extracted(window.original, windows.models[0], names, window.name, ranks))
    other = Evaluator(extracted(window.candidate, windows.models[1], theirs, window.name, ranks))
    base = bounded(mine, _impulses(feeds, 0, 0))
    base_c = bounded(other, _impulses(feeds, 0, 0)).y
    if base.y.shape != base_c.shape or base.y.shape[:1] != (1,):
        return None  # the leading axis is no batch, so that probes do not stay apart
    unit, least = UNIT_ROUNDOFF[kind] * _roundings(window.candidate), smallest_subnormal(kind.numpy())
    shift = base_c - base.y
    bias = over(shift, factors[1] * (unit * base.m + least))
    weight, slopes, signs = 0.0, np.zeros(base.y.shape[1:]), []
    for start in range(0, terms, PROBES_AT_ONCE):
        fed = _impulses(feeds, start, min(PROBES_AT_ONCE, terms - start))
        found, c = bounded(mine, fed), bounded(other, fed).y
        if found.y.shape[1:] != base.y.shape[1:] or len(found.y) != len(next(iter(fed.values()))):
            return None
        off = (c - base_c) - (found.y - base.y)
        slack = EXACT * (base.m + np.abs(base_c) + found.m)
        scale = np.maximum(found.m - base.m, 0.0)
        weight = max(weight, over(off, factors[0] * (unit * scale + least) + slack))
        slopes = slopes + np.abs(off).sum(axis=0)
        signs.append(np.sign(off).astype(np.int8).reshape(len(off), -1))
    return _worst(window.name, weight, bias, slopes, np.abs(shift[0]), np.concatenate(signs))


def _worst(name: str, weight: float, bias: float, slopes: Array, offsets: Array, signs: Array) -> Recomputed:
    at = int(np.argmax(slopes + offsets))
    channel = int(np.unravel_index(at, slopes.shape)[0])
    slope, offset = float(slopes.reshape(-1)[at]), float(offsets.reshape(-1)[at])
    return Recomputed(name, weight, bias, slope, offset, channel, signs[:, at].astype(np.float64))


def _impulses(feeds: dict[str, tuple[int, ...]], start: int, count: int) -> dict[str, Array]:
    """Rows `start` to `start + count` of the identity over all inputs' elements; one row of zeros for none."""
    result, first = {}, 0
    for name, size in feeds.items():
        width = math.prod(size)
        x = np.zeros((max(count, 1), width))
        for row in range(count):
            if first <= start + row < first + width:
                x[row, start + row - first] = 1.0
        result[name] = x.reshape(-1, *size)
        first += width
    return result


def _live(side: Piece) -> list[ir.Node]:
    """The nodes that compute something from the inputs; the others are constants."""
    return [node for node in side.nodes if stored(node.outputs[0]) is None]


def _affine(node: ir.Node) -> bool:
    """Whether a node is affine in its inputs: no product of two of them."""
    varying = sum(stored(v) is None for v in node.inputs if v is not None)
    return node.op_type in AFFINE and (varying <= 1 or node.op_type not in PRODUCTS)


def _roundings(side: Piece) -> int:
    """How many rounded constants multiply each other on the longest way through a window: their errors add up."""
    deepest: dict[ir.Value, int] = {}
    for node in side.nodes:
        multiplies = node.op_type in (*PRODUCTS, "BatchNormalization") and any(stored(v) for v in node.inputs)
        before = max((deepest.get(v, 0) for v in node.inputs if v is not None), default=0)
        deepest |= dict.fromkeys(node.outputs, before + multiplies)
    return max(1, deepest[side.result])


def _numbers(node: ir.Node) -> int:
    """How many numbers a node's constants hold."""
    return sum(math.prod(t.shape.numpy()) for v in node.inputs[1:] if (t := stored(v)) is not None)


def _patch(feed: ir.Value, window: Window) -> tuple[int, ...] | None:
    """The smallest input, without the batch, that shows every tap of the window's convolutions, borders included."""
    known = shape(feed)
    if known is None or len(known) < 2:
        return None
    convolutions = [n for side in (window.original, window.candidate) for n in side.nodes if n.op_type == "Conv"]
    products = [n for side in (window.original, window.candidate) for n in side.nodes if n.op_type == "MatMul"]
    if not convolutions and products and all(stored(n.inputs[0]) is not None for n in products):
        # Matrices on the left: the channels are the last axis but one, and columns do not mix.
        return (*(1,) * (len(known) - 3), known[-2], 1) if len(known) > 2 and isinstance(known[-2], int) else None
    channels = known[-1] if not convolutions and len(known) != 4 else known[1]
    if not isinstance(channels, int):
        return None
    if not convolutions:
        return (*(1,) * (len(known) - 2), channels) if known[-1] == channels else None
    rank = len(known) - 2
    reach = [1] * rank
    for node in convolutions:
        weight = stored(node.inputs[1])
        if weight is None:
            return None
        dilation = list(node.attributes["dilations"].as_ints()) if "dilations" in node.attributes else [1] * rank
        taps = [(int(k) - 1) * d + 1 for k, d in zip(weight.shape.numpy()[2:], dilation, strict=True)]
        reach = [max(r, t) for r, t in zip(reach, taps, strict=True)]
    return (channels, *reach)

