"""V1 without the fold map: what each changed window computes, recomputed from the original file, constant by constant.

A layer with its BatchNormalization goes by the textbook formula (`formulas`). Any other window that is affine in one
input, merged branches and layers in a row among them, is probed: its response to zero is the bias, to a unit impulse
at each input one column of the weight, and on magnitudes their scale Σ|sᵢWᵢ|. Both sides are evaluated in float64.

    |W′ − W*| ≤ t(u·scale + η)        |b′ − b*| ≤ t(u·scale + η)

The largest difference that inputs |x| ≤ B can make at one output is then closed: Σ|W′ − W*|·B + |b′ − b*|, reached at
x = ±B·sign(W′ − W*).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.graph import BATCH_NORM, dtype, is_op
from bnfold.verify.decisive import apart
from bnfold.verify.formulas import LINEAR, Folded, folded, layer, stored
from bnfold.verify.kernels.base import Unsupported
from bnfold.verify.precision import UNIT_ROUNDOFF, smallest_subnormal
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
            yield window.name, found or (None if own else _decided(windows, window))
        except (Unsupported, ValueError, ArithmeticError):
            yield window.name, None  # a shape that probing does not fit; V2 runs the window as it is


def _decided(windows: Windows, window: Window) -> Recomputed | None:
    """The window refuted by a constant that decides; such a one proves nothing, for there is more to the window."""
    ratio = apart(windows, window)
    if ratio is None or ratio <= 1.0:
        return None
    return Recomputed(window.name, ratio, 0.0, 0.0, 0.0, 0, np.zeros(0), rescaled=True, decisive=True)


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
    if exact is None or new is None or node is None or exact.shape != new.shape:
        return probed(windows, window, kind, factors)
    if not _same_attributes(ours, theirs):
        return probed(windows, window, kind, factors)
    return _judged(window.name, exact, new, kind, factors)


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
                return None if found is None else replace(found, bias=held, bias_scale=np.abs(held))
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


def _judged(name: str, exact: Folded, new: Folded, kind: ir.DataType, factors: tuple[float, float]) -> Recomputed:
    """Compare a layer's two constants with what they should be."""
    unit, least = UNIT_ROUNDOFF[kind], smallest_subnormal(kind.numpy())
    weight, slopes = _apart(exact, new, factors[0], unit, least)
    star, scale = (np.zeros(1) if v is None else v for v in (exact.bias, exact.bias_scale))
    held = np.zeros(1) if new.bias is None else new.bias
    shift = held - star
    bias = over(shift, factors[1] * (unit * scale + least))
    offsets = np.abs(np.broadcast_to(shift.reshape(-1), slopes.shape))
    channel = int(np.argmax(slopes + offsets))
    rescaled = False
    if max(weight, bias) > 1.0 and (gains := _gains(exact, new)) is not None:
        rescaled = _apart(replace(exact, scale=exact.scale * gains), new, 2.0 * factors[0], unit, least)[0] <= 1.0
        rescaled &= over(held - star * gains, 2.0 * factors[1] * (unit * scale * gains + least)) <= 1.0
    one = slice(channel, channel + 1)
    signs = np.sign(new.star(one) - exact.star(one))[0]
    return Recomputed(name, weight, bias, float(slopes[channel]), float(offsets[channel]), channel, signs, rescaled)


def _apart(exact: Folded, new: Folded, factor: float, unit: float, least: float) -> tuple[float, Array]:
    """The largest |W′ − W*| over its limit, and Σ|W′ − W*| of each output channel."""
    worst, sums = 0.0, []
    for part in exact.parts():
        star = exact.star(part)
        off = new.star(part) - star
        worst = max(worst, over(off, factor * (unit * np.abs(star) + least)))
        sums.append(np.abs(off).sum(axis=1))
    return worst, np.concatenate(sums)


def _gains(exact: Folded, new: Folded) -> Array | None:
    """By what each output channel was multiplied; None unless positive."""
    parts = list(exact.parts())
    power, common = (np.concatenate([(exact.star(p) * of.star(p)).sum(axis=1) for p in parts]) for of in (exact, new))
    gains = np.where(power > 0.0, common / np.where(power > 0.0, power, 1.0), 1.0)
    return gains if np.isfinite(gains).all() and (gains > 0.0).all() else None
