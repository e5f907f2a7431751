"""What holds the weight of a linear operator: a stored constant, or the DequantizeLinear of one.

    stored        W ↦ s·W                        also behind a Transpose
    quantized     (q − z)·d ↦ (q − z)·(s·d)      where s ≥ 0
                  (q − z)·d ↦ (~q − ~z)·(−s·d)   where s < 0: ~q = −1 − q is exact for every integer type

The dequantization scale d is per tensor, per axis or per block; one per tensor becomes per axis where s varies. An
absent zero point is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.affine import Affine, ranked
from bnfold.arrays import Array, Float64
from bnfold.derived import values
from bnfold.graph import Op, derive, overridable, tensor
from bnfold.rules.base import Edit, Reason, Refusal


@dataclass(frozen=True)
class Weight:
    """A constant weight: its values in float64, and the edits that scale it by an array that broadcasts against it."""

    shape: tuple[int, ...]
    dtype: ir.DataType
    values: Callable[[], Float64]
    scaled: Callable[[Float64, str], tuple[Edit, ...] | Refusal]


def weight(op: Op, slot: int) -> Weight | Refusal:
    """Return the constant weight in an input slot, or why it is none."""
    value = op.input(slot)
    held = tensor(value)
    if held is not None:
        return _stored(op, slot, held)
    maker = op.maker(slot)
    if maker is not None and maker.type == "DequantizeLinear" and (codes := maker.tensor(0)) is not None:
        return _dequantized(maker, codes)
    if maker is not None and maker.type == "Transpose":
        return _transposed(op, maker)
    reason = Reason.OVERRIDABLE if overridable(value) else Reason.VARIABLE
    return Refusal(reason, detail=f"input {slot} of {op.type} is not a constant").on(value)


def either_weight(op: Op) -> tuple[Weight, int] | Refusal:
    """Return the constant among two operands with its slot, or why the second is none."""
    right = weight(op, 1)
    if isinstance(right, Weight):
        return right, 1
    left = weight(op, 0)
    return right if isinstance(left, Refusal) else (left, 0)


def _transposed(op: Op, transpose: Op) -> Weight | Refusal:
    """A weight behind a Transpose, as exporters leave one in front of the MatMul of a quantized layer."""
    held = weight(transpose, 0)
    if isinstance(held, Refusal):
        return held
    if _read_elsewhere(transpose.output()):
        return Refusal(Reason.READERS, detail="the transposed weight has other readers").on(transpose.output())
    rank = len(held.shape)
    order = list(transpose.attr("perm") or reversed(range(rank)))
    inverse = [order.index(axis) for axis in range(rank)]
    return Weight(
        tuple(held.shape[axis] for axis in order), held.dtype, lambda: np.transpose(held.values(), order),
        lambda scale, formula: held.scaled(np.transpose(ranked(scale, rank), inverse), formula),
    )  # fmt: skip


def _read_elsewhere(value: ir.Value) -> bool:
    return len(value.uses()) != 1 or value.is_graph_output()


def _stored(op: Op, slot: int, held: ir.TensorProtocol) -> Weight:
    def scaled(scale: Float64, formula: str) -> tuple[Edit, ...]:
        step = Affine(scale, np.zeros(()))
        edit = Edit(op.node, slot, derive(op.input(slot), step, ((), held.dtype)), formula)
        return (edit,) if step.scales else ()

    return Weight(tuple(held.shape.numpy()), held.dtype, lambda: values(held), scaled)


def _dequantized(dequantize: Op, codes: ir.TensorProtocol) -> Weight | Refusal:
    step, zero, output = dequantize.tensor(1), dequantize.tensor(2), dequantize.output()
    if step is None or (dequantize.has(2) and zero is None):
        return Refusal(Reason.NOT_CONSTANT, detail="a quantization parameter is not a constant").on(output)
    if _read_elsewhere(output):
        return Refusal(Reason.READERS, detail="the dequantized weight has other readers").on(output)
    shape, rank = tuple(codes.shape.numpy()), len(codes.shape)
    axis = int(dequantize.attr("axis", 1)) % max(rank, 1)
    block = int(dequantize.attr("block_size", 0))
    parameters = tuple(step.shape.numpy())
    per_tensor = int(np.prod(parameters)) == 1

    def spread(array: Array) -> Array:
        """Broadcast a quantization parameter to the weight's axes, blocks repeated."""
        if block and array.shape[axis] == 1:
            return array
        if block:
            return np.repeat(array, block, axis=axis).take(range(shape[axis]), axis=axis)
        return array.reshape([-1 if k == axis else 1 for k in range(rank)])

    def dequantized() -> Float64:
        offset = 0.0 if zero is None else spread(values(zero))
        result: Float64 = (values(codes) - offset) * spread(values(step))
        return result

    def scaled(scale: Float64, formula: str) -> tuple[Edit, ...] | Refusal:
        if not np.any(scale != 1.0):
            return ()
        wide = ranked(scale, rank)
        if np.any(wide < 0) and not codes.dtype.is_integer():
            return Refusal(Reason.SIGN, detail="a quantization in floating point takes no negative scale").on(output)
        varying = [k for k in range(rank) if wide.shape[k] != 1]
        refusal = Refusal(Reason.AXIS, detail="the scale varies along an axis that the quantization does not").on(
            output
        )
        if block:
            if axis in varying:
                blocks = range(0, shape[axis], block)
                if not np.array_equal(spread(wide.take(blocks, axis=axis)), np.broadcast_to(wide, shape)):
                    return refusal
                wide = wide.take(blocks, axis=axis)
            factor = wide
        elif per_tensor and len(varying) <= (1 if dequantize.opset >= 13 else 0):
            factor = wide.reshape(-1) if varying else wide.reshape(parameters)
        elif not per_tensor and varying in ([], [axis]):
            factor = wide.reshape(-1)
        else:
            return refusal
        magnitude = Affine(np.abs(factor), np.zeros(()))
        edits = [
            Edit(dequantize.node, 1, derive(dequantize.input(1), magnitude, ((), step.dtype)), f"|s|·d, for {formula}")
        ]
        if per_tensor and varying:
            edits.append(Edit(dequantize.node, "axis", varying[0], "the axis of s"))
        along_parameters = np.broadcast_shapes(parameters, factor.shape)
        if np.any(factor < 0) or (zero is not None and along_parameters != parameters):
            edits += _complemented(
                dequantize, codes, zero, wide if not block else spread(wide), factor, along_parameters
            )
        return tuple(edits)

    return Weight(shape, step.dtype, dequantized, scaled)


def _complemented(
    dequantize: Op, codes: ir.TensorProtocol, zero: ir.TensorProtocol | None,
    along_codes: Float64, along_parameters: Float64, shape: tuple[int, ...],
) -> list[Edit]:  # fmt: skip
    """Exchange q and z with ~q and ~z where the scale is negative, and give every scale its zero point."""
    points = np.zeros((), codes.dtype.numpy()) if zero is None else zero.numpy()
    points = np.broadcast_to(points.reshape(()) if points.size == 1 else points, shape)
    edits = [Edit(dequantize.node, 2, _inverted(points, along_parameters < 0, codes.dtype), "~z where s < 0")]
    if np.any(along_codes < 0):
        edits.append(Edit(dequantize.node, 0, _inverted(codes.numpy(), along_codes < 0, codes.dtype), "~q where s < 0"))
    return edits


def _inverted(array: Array, where: npt.NDArray[np.bool_], dtype: ir.DataType) -> ir.TensorProtocol:
    """Complement every bit of the integers in `where`; the type keeps as many of them as it has."""
    wide = array.astype(np.int64)
    return ir.tensor(np.where(where, ~wide, wide).astype(dtype.numpy()), dtype=dtype)
