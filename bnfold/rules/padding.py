"""Whether the windows of a convolution or pool reach over the border of their input."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.graph import Op


def reaches_over(op: Op, kernel: Sequence[int]) -> bool:
    """Whether any window of `kernel` taps may lie partly outside: padded, or by rounding its number up.

    auto_pad SAME gives ⌈size/stride⌉ windows, which fit without padding where the sizes happen to; the sizes of the
    input must be known to tell.
    """
    if any(op.attr("pads", ()) or ()):
        return True
    same, ceil = str(op.attr("auto_pad", "NOTSET")).startswith("SAME"), bool(op.attr("ceil_mode", 0))
    if not (same or ceil):
        return False
    shape = op.shape(0)
    sizes = [None] * len(kernel) if shape is None else list(shape[2:])
    strides = list(op.attr("strides", ()) or [1] * len(kernel))
    dilations = list(op.attr("dilations", ()) or [1] * len(kernel))
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        extent = (taps - 1) * dilation + 1
        if extent == 1 if same else stride == 1:
            continue  # whatever the size: one tap needs no padding, and a stride of one leaves nothing to round
        if not isinstance(size, int):
            return True
        count = -(-size // stride) if same else -(-(size - extent) // stride) + 1
        if (count - 1) * stride + extent > size:
            return True
    return False
