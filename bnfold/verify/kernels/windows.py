"""The geometry that convolutions and pools share: padding, output size, and one strided slice per kernel tap.

Sizes follow the ONNX operator specification (Conv, AveragePool: "output shape" and "auto_pad").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Call


@dataclass(frozen=True)
class Windows:
    """Sliding windows over the spatial axes: all fields have one entry per spatial axis."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def overhang(self) -> tuple[int, ...]:
        """How far the last window reaches beyond the padded input (only with ceil_mode)."""
        return tuple(
            max(0, (o - 1) * s + d * (k - 1) + 1 - (n + b + e))
            for o, s, d, k, n, b, e in zip(
                self.out, self.stride, self.dilation, self.kernel, self.size, self.begin, self.end, strict=True
            )
        )

    def pad(self, x: Array, value: float = 0.0) -> Array:
        """Pad the spatial axes of `x` [N, C, *size] with `value`, overhang included."""
        widths = [(0, 0), (0, 0)]
        widths += [(b, e + o) for b, e, o in zip(self.begin, self.end, self.overhang, strict=True)]
        if all(w == (0, 0) for w in widths):
            return x
        return np.pad(x, widths, constant_values=value)

    def taps(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yield each kernel tap with the slices of the padded spatial axes that it reads."""
        for tap in itertools.product(*(range(k) for k in self.kernel)):
            yield tap, tuple(
                slice(t * d, t * d + (o - 1) * s + 1, s)
                for t, d, o, s in zip(tap, self.dilation, self.out, self.stride, strict=True)
            )


def windows(call: Call, size: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Work out the windows that a Conv or pool node slides over an input of spatial `size`."""
    rank = len(size)
    stride = tuple(call.get("strides") or [1] * rank)
    dilation = tuple(call.get("dilations") or [1] * rank)
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    auto = call.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        out = [-(-n // s) for n, s in zip(size, stride, strict=True)]
        total = [max(0, (o - 1) * s + k - n) for o, s, k, n in zip(out, stride, extent, size, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    else:
        pads = list(call.get("pads") or [0] * (2 * rank)) if auto != "VALID" else [0] * (2 * rank)
        begin, end = pads[:rank], pads[rank:]
        ceil = bool(call.get("ceil_mode", 0))
        out = []
        for n, k, s, b, e in zip(size, extent, stride, begin, end, strict=True):
            room = n + b + e - k
            # ONNX Runtime rounds towards zero: a pool's window that is a little larger than the input still counts.
            count = (-(-room // s) if ceil else int(room / s)) + 1
            # A window that would start in the padding behind the input does not count.
            if ceil and (count - 1) * s >= n + b:
                count -= 1
            out.append(max(count, 0))
    return Windows(tuple(size), tuple(kernel), stride, dilation, tuple(begin), tuple(end), tuple(out))
