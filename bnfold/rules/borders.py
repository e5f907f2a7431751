"""Clip and Pad write values of their own, which an affine takes along.

Clip   A∘clip(lo, hi) = clip(A(lo), A(hi))∘A for a uniform A with s > 0, bounds exchanged for s < 0; bounds that
       every scale maps to themselves (0, ±∞) let any s ≥ 0 pass, as a Relu does
Pad    A∘pad(v) = pad(A(v))∘A where A(v) is one number. Modes that copy elements let any affine pass that is uniform
       along the padded axes

Hoisted, the bounds and v become A of themselves; sunk, they become the u with A(u) = v, where there is one for all
elements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from bnfold.affine import Affine
from bnfold.derived import Derived
from bnfold.graph import Op, dtype
from bnfold.rules.base import Edit, Facts, Outcome, Reason, Refusal, Rule, Step, Table
from bnfold.rules.commutes import RELU


def _bounds(op: Op) -> tuple[float, float] | Refusal:
    values = []
    for slot, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        if op.has(slot):
            held = op.const(slot)
            if held is None:
                return Refusal(Reason.VARIABLE, detail=f"the {name} of Clip is not a constant").on(op.input(slot))
            values.append(float(held.item()))
        else:
            values.append(float(op.attr(name, default)))
    if not values[0] <= values[1]:
        return Refusal(Reason.BARRIER, detail="the bounds of Clip are not in order").on(op.output())
    return values[0], values[1]


def _fixed(low: float, high: float) -> bool:
    """Whether any scaling with s ≥ 0 maps the bounds to themselves, so that Clip is a Relu."""
    return {low, high} <= {0.0, np.inf, -np.inf}


def _clip_hoist(op: Op, demands: Facts) -> Outcome | list[Step]:
    bounds, wanted = _bounds(op), demands[0]
    if isinstance(bounds, Refusal):
        return bounds
    if _fixed(*bounds) and wanted.scales and wanted.nonnegative:
        return RELU.hoist(op, demands)
    if wanted.scale.size != 1 or wanted.shift.size != 1:
        return Refusal(Reason.AXIS, detail="the bounds of Clip are scalars")
    scale, shift = wanted.scale.item(), wanted.shift.item()
    if scale == 0.0:
        return Refusal(Reason.SIGN, detail="a scale of zero leaves Clip no bounds")
    return _bounded(op, wanted, bounds, sorted(scale * bound + shift for bound in bounds), "s·v + t")


def _bounded(op: Op, affine: Affine, old: tuple[float, float], new: list[float], formula: str) -> Outcome:
    """Pass an affine on between new bounds."""
    bounds = [(1, "min", new[0])] * (new[0] != old[0]) + [(2, "max", new[1])] * (new[1] != old[1])
    return _writing(op, affine, bounds, formula)


def _writing(op: Op, affine: Affine, numbers: list[tuple[int, str, float]], formula: str) -> Outcome:
    """Pass an affine on with numbers written into input slots or, before opset 11, into attributes."""
    kind = dtype(op.output())
    if kind is None:
        return Refusal(Reason.NOT_FLOATING, detail="the type of the value is not known")
    edits = []
    for slot, name, value in numbers:
        held: ir.TensorProtocol = Derived(np.array(value), kind)
        if np.isinf(value):  # meant, while a Derived that is not finite is refused
            held = ir.tensor(np.array(value, kind.numpy()), dtype=kind)
        edits.append(Edit(op.node, name, value, formula) if op.opset < 11 else Edit(op.node, slot, held, formula))
    return Step(passed={0: affine}, edits=tuple(edits))


def _clip_sink(op: Op, facts: Facts) -> Outcome:
    bounds = _bounds(op)
    if isinstance(bounds, Refusal):
        return bounds
    fact = facts[0]
    if _fixed(*bounds) and not fact.shifts and fact.nonnegative:
        return Step(passed={0: fact})
    origins = [_origin(fact, bound) for bound in bounds]
    if None in origins:
        reason = Reason.SHIFT if fact.shifts else Reason.SIGN
        return Refusal(reason, detail="the bounds of Clip would differ between elements")
    return _bounded(op, fact, bounds, sorted(origin for origin in origins if origin is not None), "(v − t)/s")


def _origin(fact: Affine, value: float) -> float | None:
    """Return the u with s·u + t = value for every element, if there is one."""
    scale, shift = np.broadcast_arrays(fact.scale, fact.shift)
    if np.any(scale == 0.0):
        return None
    origins = (value - shift) / scale
    return float(origins.flat[0]) if np.all(origins == origins.flat[0]) else None


def _pad_value(op: Op) -> float | Refusal:
    if op.has(2):
        held = op.const(2)
        if held is None:
            return Refusal(Reason.VARIABLE, detail="the pad value is not a constant").on(op.input(2))
        return float(held.item())
    return float(op.attr("value", 0.0))


def _padded(op: Op, rank: int) -> frozenset[int]:
    """The axes that are padded, as far as it is known: all of them where it is not."""
    pads, axes = op.ints(1, "pads"), op.ints(3, "axes") if op.has(3) else list(range(rank))
    if pads is None or axes is None:
        return frozenset(range(rank))
    return frozenset(axis % rank for k, axis in enumerate(axes) if pads[k] or pads[k + len(axes)])


def _pad(op: Op, affine: Affine, formula: str, moved: Callable[[Affine, float], float | None]) -> Outcome:
    """Pass an affine that maps the pad value to itself, or `moved` it."""
    rank = op.rank(0)
    if rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE)
    axes = _padded(op, rank)
    if not affine.axes(rank).isdisjoint(axes):
        return Refusal(Reason.AXIS, detail="the affine varies along a padded axis")
    if op.attr("mode", "constant") != "constant" or not axes:
        return Step(passed={0: affine})
    value = _pad_value(op)
    if isinstance(value, Refusal):
        return value
    if np.all(affine(value) == value):
        return Step(passed={0: affine})
    new = moved(affine, value)
    if new is None:
        return Refusal(Reason.PADDING, detail=f"the padding writes {value:g}, which the affine would change")
    return _writing(op, affine, [(2, "value", new)], formula)


def _image(affine: Affine, value: float) -> float | None:
    """Return s·value + t, if it is one number for all elements."""
    mapped = affine(value)
    return float(mapped.item()) if mapped.size == 1 else None


def _pad_hoist(op: Op, demands: Facts) -> Outcome:
    return _pad(op, demands[0], "s·v + t", _image)


def _pad_sink(op: Op, facts: Facts) -> Outcome:
    if set(facts) != {0}:
        return Refusal(Reason.VARIABLE, detail="the pad value is computed at run time").on(op.input(2))
    return _pad(op, facts[0], "(v − t)/s", _origin)


TABLE: Table = {
    "Clip": Rule("commutes", _clip_hoist, _clip_sink),
    "Pad": Rule("commutes", _pad_hoist, _pad_sink),
}
