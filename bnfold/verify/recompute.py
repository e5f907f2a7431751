"""V1 without the fold map: what each changed window computes, recomputed from the original file, constant by constant.

A layer with its BatchNormalization goes by the textbook formula (`formulas`). Any other window that is affine in one
input, merged branches and layers in a row among them, is probed: its response to zero is the bias, to a unit impulse
at each input one column of the weight, and on magnitudes their scale Σ|sᵢWᵢ|. Both sides are evaluated in float64.

    |W′ − W*| ≤ t(u·scale + η)        |b′ − b*| ≤ t(u·scale + η)

The largest difference that inputs |x| ≤ B can make at one output is then closed: Σ|W′ − W*|·B + |b′ − b*|, reached at
x = ±B·sign(W′ − W*).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from bnfold.graph import BATCH_NORM, dtype, is_op
from bnfold.verify.formulas import LINEAR, Folded, folded, layer, smallest_subnormal, stored
from bnfold.verify.kernels.base import Array, Unsupported
from bnfold.verify.precision import UNIT_ROUNDOFF
from bnfold.verify.probe import AFFINE, Recomputed, over, probed
from bnfold.verify.structure import attribute_differences
from bnfold.verify.windows import Piece, Window, Windows

# For a weight and for a bias: somebody else's float32 formulas, and bnfold's one rounding from float64.
FOREIGN, OWN = (4.0, 8.0), (1.0 + 2.0**-20, 1.0 + 2.0**-20)


def recompute(windows: Windows, *, own: bool) -> Iterator[tuple[str, Recomputed | None]]:
    """Yield each changed window's name with its proof, or None where it is no affine map that can be recomputed."""
    for window in windows.changed:
        try:
            with np.errstate(all="ignore"):  # weights that are not finite are named elsewhere
                found = _recomputed(windows, window, OWN if own else FOREIGN)
            yield window.name, found
        except (Unsupported, ValueError, ArithmeticError):
            yield window.name, None  # a shape that probing does not fit; V2 runs the window as it is


def _recomputed(windows: Windows, window: Window, factors: tuple[float, float]) -> Recomputed | None:
    ours, theirs = _without_tail(window.original.result, window.candidate.result, windows)
    kind = dtype(theirs) or dtype(window.original.result)
    if kind not in UNIT_ROUNDOFF:
        return None
    new, exact, node = _layer(theirs), _chain(ours), _linear(theirs)
    twins = [windows.pairing.twins[feed] for feed in window.candidate.feeds]
    # Where an affine went to one of its readers only, that one reads another shared value than before.
    if twins != list(window.original.feeds) or not (_reads(ours, window.original) and _reads(theirs, window.candidate)):
        return probed(windows, window, kind, factors)
    if exact is None or new is None or node is None or exact.weight.shape != new.weight.shape:
        return probed(windows, window, kind, factors)
    if not _same_attributes(ours, theirs):
        return probed(windows, window, kind, factors)
    return _judged(window.name, exact, new, kind, factors, node)


def _without_tail(ours: ir.Value, theirs: ir.Value, windows: Windows) -> tuple[ir.Value, ir.Value]:
    """Step back over equal operators with one input, an activation say, at the end of both sides."""
    twins = windows.pairing.twins
    while True:
        one, two = ours.producer(), theirs.producer()
        if one is None or two is None or one.op_type != two.op_type or one.op_type in AFFINE:
            return ours, theirs
        if len(one.inputs) != 1 or len(two.inputs) != 1 or next(attribute_differences(one, two), None) is not None:
            return ours, theirs
        if two.inputs[0] in twins or one.inputs[0] is None or two.inputs[0] is None:
            return ours, theirs
        ours, theirs = one.inputs[0], two.inputs[0]


def _layer(value: ir.Value) -> Folded | None:
    """The weight and bias of the layer that computes a value, a constant Add behind a product included."""
    node = value.producer()
    if node is None:
        return None
    if node.op_type in LINEAR:
        return layer(node)
    if node.op_type == "Add":
        for here, other in ((0, 1), (1, 0)):
            product, bias = node.inputs[here], stored(node.inputs[other])
            maker = None if product is None else product.producer()
            if bias is not None and maker is not None and maker.op_type == "MatMul":
                found, held = layer(maker), bias.numpy().astype(np.float64)
                return None if found is None else Folded(found.weight, found.weight_scale, held, np.abs(held))
    return None


def _chain(value: ir.Value) -> Folded | None:
    """W* and b* of a layer with a BatchNormalization, or of a layer alone."""
    node = value.producer()
    if node is None or not is_op(node, BATCH_NORM):
        return _layer(value)
    maker = None if node.inputs[0] is None else node.inputs[0].producer()
    return folded(maker, node) if maker is not None and maker.op_type in LINEAR else None


def _same_attributes(ours: ir.Value, theirs: ir.Value) -> bool:
    one, two = (_linear(v) for v in (ours, theirs))
    if one is None or two is None or one.op_type != two.op_type:
        return False
    return {k: a.value for k, a in one.attributes.items()} == {k: a.value for k, a in two.attributes.items()}


def _linear(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    while node is not None and node.op_type not in LINEAR:
        makers = [v.producer() for v in node.inputs if v is not None and stored(v) is None]
        node = makers[0] if makers else None
    return node


def _reads(value: ir.Value, side: Piece) -> bool:
    """Whether the layer of a value reads what the window is fed, and nothing comes in between."""
    node = _linear(value)
    return node is not None and len(side.feeds) == 1 and node.inputs[0] is side.feeds[0]


def _judged(
    name: str, exact: Folded, new: Folded, kind: ir.DataType, factors: tuple[float, float], node: ir.Node
) -> Recomputed:
    """Compare a layer's two constants with what they should be."""
    unit, least = UNIT_ROUNDOFF[kind], smallest_subnormal(kind)
    off = new.weight - exact.weight
    weight = over(off, factors[0] * (unit * exact.weight_scale + least))
    star, scale = (np.zeros(1) if v is None else v for v in (exact.bias, exact.bias_scale))
    shift = (np.zeros(1) if new.bias is None else new.bias) - star
    bias = over(shift, factors[1] * (unit * scale + least))
    rows = _by_output(off, node)
    slopes, offsets = np.abs(rows).sum(axis=1), np.abs(np.broadcast_to(shift.reshape(-1), (rows.shape[0],)))
    channel = int(np.argmax(slopes + offsets))
    rescaled = False
    if max(weight, bias) > 1.0 and (gains := _gains(exact, new, node)) is not None:
        off, shift = new.weight - exact.weight * gains[0], shift + star - star * gains[1]
        rescaled = over(off, 2.0 * factors[0] * (unit * exact.weight_scale * gains[0] + least)) <= 1.0
        rescaled &= over(shift, 2.0 * factors[1] * (unit * scale * gains[1] + least)) <= 1.0
    return Recomputed(
        name, weight, bias, float(slopes[channel]), float(offsets[channel]), channel, np.sign(rows[channel]), rescaled
    )


def _gains(exact: Folded, new: Folded, node: ir.Node) -> tuple[Array, Array] | None:
    """By what each output channel was multiplied, shaped for the weight and for the bias; None unless positive."""
    mine, other = _by_output(exact.weight, node), _by_output(new.weight, node)
    power = (mine * mine).sum(axis=1)
    gains = np.where(power > 0.0, (mine * other).sum(axis=1) / np.where(power > 0.0, power, 1.0), 1.0)
    if not (np.isfinite(gains).all() and (gains > 0.0).all()):
        return None
    ones = np.broadcast_to(gains[:, None], mine.shape)
    return _as_weight(ones, exact.weight.shape, node), gains


def _by_output(off: Array, node: ir.Node) -> Array:
    """The differences of a weight as one row an output channel."""
    if node.op_type == "ConvTranspose":
        group = node.attributes["group"].as_int() if "group" in node.attributes else 1
        split = off.reshape(group, off.shape[0] // group, off.shape[1], -1)
        return np.moveaxis(split, 2, 1).reshape(group * off.shape[1], -1)
    across = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not ("transB" in node.attributes and node.attributes["transB"].as_int())
    )
    return off.reshape(-1, off.shape[-1]).T if across else off.reshape(off.shape[0], -1)


def _as_weight(rows: Array, shape: tuple[int, ...], node: ir.Node) -> Array:
    """The inverse of `_by_output`."""
    index = _by_output(np.arange(math.prod(shape), dtype=np.float64).reshape(shape), node).astype(np.int64)
    flat = np.empty(math.prod(shape))
    flat[index.reshape(-1)] = rows.reshape(-1)
    return flat.reshape(shape)
