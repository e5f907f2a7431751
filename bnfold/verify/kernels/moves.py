"""Operators that move, make or measure values; their element type passes through untouched."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Arrays, Call, Unsupported, kernel, optional, real
from bnfold.verify.kernels.delegate import delegate


@kernel("Constant")
def constant(call: Call, inputs: Arrays) -> Arrays:
    """The value of the node's one attribute; floats in float64."""
    for name, value in call.attrs.items():
        if name == "value":
            return (real(np.asarray(value)),)
        if name in ("value_float", "value_floats"):
            return (np.asarray(value, dtype=np.float64),)
        if name in ("value_int", "value_ints"):
            return (np.asarray(value, dtype=np.int64),)
        if name in ("value_string", "value_strings"):
            return (np.asarray(value, dtype=object),)
    raise Unsupported(f"Constant with {', '.join(call.attrs) or 'no value'}")


@kernel("ConstantOfShape")
def constant_of_shape(call: Call, inputs: Arrays) -> Arrays:
    """A tensor of the given shape filled with one value (0.0 by default)."""
    fill = np.asarray(call.get("value", np.zeros(1, np.float32)))
    return (np.full(tuple(int(n) for n in inputs[0]), real(fill).reshape(-1)[0]),)


@kernel("Shape")
def shape(call: Call, inputs: Arrays) -> Arrays:
    """The shape as int64, from `start` to `end`."""
    return (np.asarray(inputs[0].shape[call.get("start", 0) : call.get("end")], dtype=np.int64),)


@kernel("Size")
def size(call: Call, inputs: Arrays) -> Arrays:
    """The number of elements."""
    return (np.asarray(inputs[0].size, dtype=np.int64),)


@kernel("Reshape")
def reshape(call: Call, inputs: Arrays) -> Arrays:
    """Reshape; 0 copies a dimension (unless allowzero), −1 infers one."""
    x = inputs[0]
    wanted = [int(n) for n in (inputs[1] if len(inputs) > 1 else call.get("shape"))]
    if not call.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return (x.reshape(wanted),)


@kernel("Flatten")
def flatten(call: Call, inputs: Arrays) -> Arrays:
    """Two dimensions: the axes before `axis` and those from it on."""
    x, axis = inputs[0], call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return (x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1),)


@kernel("Transpose")
def transpose(call: Call, inputs: Arrays) -> Arrays:
    """Permute the axes (reverse them by default)."""
    return (np.transpose(inputs[0], call.get("perm")),)


@kernel("Concat")
def concat(call: Call, inputs: Arrays) -> Arrays:
    """Join along `axis`."""
    return (np.concatenate(inputs, axis=call.get("axis", 1)),)


@kernel("Gather")
def gather(call: Call, inputs: Arrays) -> Arrays:
    """Take slices along `axis`."""
    return (np.asarray(np.take(inputs[0], inputs[1], axis=call.get("axis", 0))),)


@kernel("GatherElements")
def gather_elements(call: Call, inputs: Arrays) -> Arrays:
    """Take one element for each index; the indices may cover only the front of the other axes."""
    x, index = inputs
    axis = call.get("axis", 0) % x.ndim
    front = tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(index.shape))
    return (np.take_along_axis(x[front], index, axis=axis),)


@kernel("Scatter")
def scatter(call: Call, inputs: Arrays) -> Arrays:
    """What ScatterElements was called before opset 11."""
    elements = Call("ScatterElements", {"axis": call.get("axis", 0)}, 11, call.outputs, call.cache)
    return delegate(elements, inputs)


@kernel("Pad")
def pad(call: Call, inputs: Arrays) -> Arrays:
    """Crop where pads are negative, then pad: with a constant, or with the input's own values."""
    x = inputs[0]
    pads = np.asarray(inputs[1] if call.opset >= 11 else call.get("pads")).reshape(2, -1)
    axes = optional(inputs, 3)
    widths = np.zeros((x.ndim, 2), np.int64)
    widths[list(range(x.ndim)) if axes is None else np.asarray(axes)] = pads.T
    crop, grow = np.maximum(-widths, 0), np.maximum(widths, 0)
    x = x[tuple(slice(b, n - e) for (b, e), n in zip(crop, x.shape, strict=True))]
    mode = call.get("mode", "constant")
    if mode != "constant":
        return (np.pad(x, grow, mode=mode),)
    value = optional(inputs, 2) if call.opset >= 11 else call.get("value")
    return (np.pad(x, grow, constant_values=0 if value is None else np.asarray(value).item()),)


@kernel("Range")
def numbers(call: Call, inputs: Arrays) -> Arrays:
    """start, start + delta, … below limit."""
    start, limit, delta = (np.asarray(v).reshape(()) for v in inputs)
    count = max(0, int(np.ceil((limit.item() - start.item()) / delta.item())))
    return ((start + np.arange(count) * delta).astype(start.dtype),)


@kernel("EyeLike")
def eye_like(call: Call, inputs: Arrays) -> Arrays:
    """Ones on the k-th diagonal."""
    stored = call.get("dtype")
    dtype = ir.DataType(stored).numpy() if stored else inputs[0].dtype
    rows, columns = inputs[0].shape
    return (real(np.eye(rows, columns, k=call.get("k", 0)).astype(dtype)),)


@kernel("OneHot")
def one_hot(call: Call, inputs: Arrays) -> Arrays:
    """A new axis of size `depth` that holds on_value at each index and off_value elsewhere."""
    indices, depth, (off, on) = inputs[0], int(inputs[1].reshape(-1)[0]), inputs[2]
    axis = call.get("axis", -1) % (indices.ndim + 1)
    wrapped = np.expand_dims(np.where(indices < 0, indices + depth, indices), axis)
    along = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(wrapped.ndim)])
    return (np.where(wrapped == along, on, off),)


@kernel("NonMaxSuppression")
def non_max_suppression(call: Call, inputs: Arrays) -> Arrays:
    """Indices of the boxes that survive; onnx's kernel wants its scalars as vectors."""
    return delegate(call, [*inputs[:2], *(None if v is None else np.atleast_1d(v) for v in inputs[2:])])


@kernel("SequenceEmpty")
def sequence_empty(call: Call, inputs: Arrays) -> Arrays:
    """A sequence of nothing."""
    return ([],)


@kernel("Optional", "OptionalGetElement")
def optional_element(call: Call, inputs: Arrays) -> Arrays:
    """What is optional is passed on as it is, or as None."""
    return (optional(inputs, 0),)


@kernel("OptionalHasElement")
def optional_has_element(call: Call, inputs: Arrays) -> Arrays:
    """Whether there is anything."""
    return (np.asarray(optional(inputs, 0) is not None),)


@kernel("Upsample")
def upsample(call: Call, inputs: Arrays) -> Arrays:
    """Resize as it was before opset 10: asymmetric coordinates, nearest by floor."""
    scales = optional(inputs, 1)
    scales = np.asarray(call.get("scales") if scales is None else scales, dtype=np.float64)
    attrs = {
        "mode": "nearest" if call.get("mode", "nearest") == "nearest" else "linear",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    resize = call.cache.setdefault("resize", Call("Resize", attrs, 19))
    return delegate(resize, [inputs[0], None, scales])


@kernel("Resize")
def resize(call: Call, inputs: Arrays) -> Arrays:
    """Interpolate; opset 10 has no coordinate modes and is Upsample's arithmetic."""
    if call.opset < 11:
        return upsample(call, inputs)
    return delegate(call, [None if _absent(v) else v for v in inputs])


def _absent(value: Array | None) -> bool:
    # Exporters write "not given" as an empty roi or scales tensor.
    return value is None or value.size == 0
