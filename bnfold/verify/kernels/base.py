"""What a float64 kernel is, and the table that they all register in.

A kernel takes a `Call` and the node's input arrays (None where one is absent) and returns its outputs.
Every floating-point array is float64, whatever the model stores: kernels never narrow a type and never
change their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.arrays import Array

Arrays = Sequence[Any]
Kernel = Callable[["Call", Arrays], Arrays]


class Unsupported(Exception):
    """An operator (or a use of one) that has no exact float64 evaluation here; the message names it."""


@dataclass(frozen=True)
class Call:
    """One node as a kernel sees it: its operator, attributes, opset version and number of outputs."""

    op: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1
    cache: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value, or `default` where the node does not set it."""
        return self.attrs.get(name, default)


KERNELS: dict[str, Kernel] = {}


def kernel(*ops: str) -> Callable[[Kernel], Kernel]:
    """Register a function as the float64 kernel of `ops` in the default domain."""

    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(ops, function))
        return function

    return register


def optional(inputs: Arrays, index: int) -> Any:
    """Return input `index`, or None where it is absent."""
    return inputs[index] if len(inputs) > index else None


def is_float(array: Any) -> bool:
    """Whether `array` holds floating-point values of any width (bfloat16 and float8 are not numpy's own)."""
    if not isinstance(array, np.ndarray):
        return False
    return array.dtype.kind == "f" or str(array.dtype.name).startswith(("bfloat", "float"))


def real(array: Array) -> Array:
    """Return floating-point arrays in float64 and all others as they are."""
    return array.astype(np.float64) if is_float(array) and array.dtype != np.float64 else array


def channelwise(vector: Array, rank: int, axis: int = 1) -> Array:
    """Reshape a [C] vector so that it broadcasts along `axis` of an array of `rank` dimensions."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
