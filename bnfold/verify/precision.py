"""The unit roundoff of what a model stores, and weights that are no numbers."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir


def unit_roundoff(dtype: np.dtype[Any]) -> float:
    """Return half the distance from 1 to the next number of a floating-point type."""
    return float(ml_dtypes.finfo(dtype).eps) / 2.0  # type: ignore[no-untyped-call]


def smallest_subnormal(dtype: np.dtype[Any]) -> float:
    """Return η, below which a floating-point type holds nothing but zero."""
    return float(ml_dtypes.finfo(dtype).smallest_subnormal)  # type: ignore[no-untyped-call]


def smallest_normal(dtype: np.dtype[Any]) -> float:
    """Return the number below which a floating-point type rounds to multiples of its η."""
    return float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]


FLOATS = (ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
UNIT_ROUNDOFF = {kind: unit_roundoff(kind.numpy()) for kind in FLOATS}


def underflows(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a tensor holds numbers so small that they were rounded by more than their type's unit roundoff.

    A zero of float16 may be one of them; in wider types it is one that was meant.
    """
    if tensor is None or tensor.dtype not in UNIT_ROUNDOFF:
        return False
    array = np.abs(tensor.numpy())
    small = array < smallest_normal(tensor.dtype.numpy())
    return bool((small if tensor.dtype == ir.DataType.FLOAT16 else small & (array > 0)).any())


def model_unit(model: ir.Model) -> float:
    """Return the unit roundoff of the coarsest float type among the model's weights, inputs and outputs."""
    values = itertools.chain(
        *(g.initializers.values() for g in model.graphs()), model.graph.inputs, model.graph.outputs
    )
    found = [UNIT_ROUNDOFF[v.dtype] for v in values if v.dtype in UNIT_ROUNDOFF]
    return max(found, default=2.0**-24)


def underflow(dtype: np.dtype[Any]) -> float:
    """Return what is as good as zero among values of a type: ONNX Runtime's exp may clamp below the normal numbers.

    Types shorter than float32 are computed in it, and stored with subnormals.
    """
    computed = np.float64 if dtype == np.float64 else np.float32
    return max(smallest_subnormal(dtype), float(np.finfo(computed).smallest_normal))


def not_a_number(model: ir.Model) -> list[str]:
    """Return a reason for each weight that holds NaN: whatever it touches can't be compared."""
    reasons = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and value.dtype in UNIT_ROUNDOFF:
                array = tensor.numpy()
                if np.isnan(array.astype(np.float32, copy=False) if array.dtype.kind == "V" else array).any():
                    reasons.append(f"initializer {value.name!r} of the original holds NaN")
    return reasons
