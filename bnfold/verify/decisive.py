"""V1 for constants that decide: thresholds, bounds, tables. Inputs may never come to where another one would show.

Where both sides of a window are the same operators, wired alike, and only such constants differ, each of them is held
against the original's: integers are the same or not, and floats within 4(u|c| + η), as a weight of a third party's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.verify.formulas import PART, stored
from bnfold.verify.kernels.base import is_float
from bnfold.verify.precision import UNIT_ROUNDOFF, smallest_subnormal
from bnfold.verify.probe import over
from bnfold.verify.reference import captured
from bnfold.verify.structure import attribute_differences
from bnfold.verify.windows import Window, Windows

FACTOR = 4.0
# The inputs that hold them.
DECISIVE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Mod"), (0, 1)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Slice"), (0,)),
    **dict.fromkeys(("Max", "Min"), tuple(range(16))),
    "Where": (0, 1, 2), "Clip": (1, 2), "NonMaxSuppression": (2, 3, 4), "OneHot": (2,), "TopK": (1,), "PRelu": (1,),
}  # fmt: skip


def apart(windows: Windows, window: Window) -> float | None:
    """Return the largest difference of a deciding constant over its limit; None where the sides differ otherwise."""
    worst: float | None = None
    for ours, theirs in _differing(windows, window):
        if ours is None or theirs is None:
            return None
        worst = max(worst or 0.0, _over(ours, theirs))
    return worst


def _differing(windows: Windows, window: Window) -> Iterator[tuple[Array | None, Array | None]]:
    """Yield the deciding constants that differ, and None for whatever else does."""
    other = None, None
    todo, seen = [(window.original.result, window.candidate.result)], set()
    while todo:
        a, b = todo.pop()
        one, two = a.producer(), b.producer()
        if one is None or two is None or a.index() != b.index() or one.op_type != two.op_type:
            yield other
            return
        if (one, two) in seen:
            continue
        seen.add((one, two))
        mine, new = ([*node.inputs, *captured(node)] for node in (one, two))
        if len(mine) != len(new) or next(attribute_differences(one, two), None) is not None:
            yield other
            return
        for slot, (x, y) in enumerate(zip(mine, new, strict=True)):
            if windows.pairing.same_value(x, y):
                continue
            held, given = stored(x), stored(y)
            if held is not None and given is not None and slot in DECISIVE.get(one.op_type, ()):
                yield held.numpy(), given.numpy()
            elif x is None or y is None or held is not None or given is not None or y in windows.pairing.twins:
                yield other
            else:
                todo.append((x, y))


def _over(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or not is_float(ours):
        return np.inf
    kind = ir.DataType.from_numpy(ours.dtype)
    if kind not in UNIT_ROUNDOFF:
        return np.inf
    unit, least, worst = UNIT_ROUNDOFF[kind], smallest_subnormal(ours.dtype), 0.0
    for start in range(0, ours.size, PART):
        a, b = (v.reshape(-1)[start : start + PART].astype(np.float64) for v in (ours, theirs))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):  # what is infinite on both sides
            error = np.where(same, 0.0, a - b)
        worst = max(worst, over(error, FACTOR * (unit * np.abs(a) + least)))
    return worst
