"""Linear layers of a graph, read as kernels; `writing` is the way back.

A layer's form is read from shapes and attributes; its weights are read only when a merge is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.affine import IDENTITY
from bnfold.arrays import Float64
from bnfold.derived import foldable_dtype
from bnfold.graph import Op, dtype, is_op
from bnfold.graph.constants import FAULTS
from bnfold.merging.kernels import Form, Ints, Kernel
from bnfold.rules import rule_for
from bnfold.rules.base import Step

# The window of an average pool is written out to merge it; no useful one is larger.
POOLED = 1 << 12

Reader = Callable[[Op], Form | None]


@dataclass(frozen=True)
class Layer:
    """A node that is a linear layer of one value `x`, or of a copy of it, which is its operand `slot`."""

    node: ir.Node
    x: ir.Value
    form: Form
    dtype: ir.DataType
    slot: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return self.dtype.bitwidth // 8

    @property
    def axis(self) -> int:
        """The axis of the channels, of input and output."""
        return -1 - self.slot if self.node.op_type in ("MatMul", "Gemm") else 1

    def kernel(self) -> Kernel:
        """Read the weights."""
        op, form = Op(self.node), self.form
        if op.type == "AveragePool":
            return Kernel(form, np.full((form.outs, 1, *form.taps), 1.0 / math.prod(form.taps)), np.zeros(form.outs))
        held, gemm = op.const(1 - self.slot), op.type == "Gemm"
        assert held is not None
        weight: Float64 = held
        bias, added = np.zeros(form.outs), op.const(2)
        if added is not None:
            bias += added.reshape(-1) * (float(op.attr("beta", 1.0)) if gemm else 1.0)
        if op.type == "ConvTranspose":
            split = weight.reshape(form.groups, -1, *weight.shape[1:])
            weight = np.swapaxes(split, 1, 2).reshape(form.outs, -1, *form.taps)
        elif (op.type == "MatMul" and not self.slot) or (gemm and not op.attr("transB", 0)):
            weight = weight.T
        alpha = float(op.attr("alpha", 1.0)) if gemm else 1.0
        return Kernel(form, weight if alpha == 1.0 else weight * alpha, bias)


def read(value: ir.Value) -> Layer | None:
    """Return the layer that computes a value, or None where it is none with constant weights."""
    node, kind = value.producer(), dtype(value)
    if node is None or not is_op(node, *_FORMS):
        return None
    slot = int(_left_dims(Op(node)) is not None)
    x = node.inputs[slot] if len(node.inputs) > slot else None
    if x is None or kind is None or not foldable_dtype(kind):
        return None
    while (producer := x.producer()) is not None and copies(producer):
        x = producer.inputs[0]
        assert x is not None
    try:
        op = Op(node)
        form, bias = _FORMS[node.op_type](op), op.tensor(2)
    except FAULTS:
        return None  # an invalid operator is left for the runtime to refuse
    if form is None or (bias is not None and bias.size not in (1, form.outs)):
        return None
    return Layer(node, x, form, kind, slot)


def copies(node: ir.Node) -> bool:
    """Whether the node does nothing but hand its first operand on: Identity, and Dropout in inference mode."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False  # a Dropout whose mask is read has to stay
    rule = rule_for(Op(node)) if node.op_type in ("Identity", "Dropout") else None
    return rule is not None and rule.sink is not None and isinstance(rule.sink(Op(node), {0: IDENTITY}), Step)


def _geometry(op: Op, taps: Ints) -> tuple[Ints, Ints, Ints, Ints] | None:
    """Return strides, dilations, first taps and slacks, or None where padding depends on the input's size."""
    rank = len(taps)
    strides = tuple(op.attr("strides") or (1,) * rank)
    dilations = tuple(op.attr("dilations") or (1,) * rank)
    spans = [d * (k - 1) for d, k in zip(dilations, taps, strict=True)]
    pads = _pads(op, strides, spans)
    if pads is None or min(pads, default=0) < 0:
        return None
    first = tuple(-pad for pad in pads[:rank])
    slack = tuple(pads[a] + pads[a + rank] - spans[a] for a in range(rank))
    return strides, dilations, first, slack


def _pads(op: Op, strides: Sequence[int], spans: Sequence[int]) -> list[int] | None:
    """Return ONNX's pads, or None where they depend on a size that is not known."""
    mode, rank = str(op.attr("auto_pad", "NOTSET")), len(strides)
    if mode == "VALID":
        return [0] * (2 * rank)
    if not mode.startswith("SAME"):
        return list(op.attr("pads") or [0] * (2 * rank))
    sizes, small, large = (op.shape(0) or ())[2:], [], []
    if len(sizes) != rank:
        return None
    for size, stride, span in zip(sizes, strides, spans, strict=True):
        total = _same(size, stride, span)
        if total is None:
            return None
        small.append(total // 2)
        large.append(total - total // 2)
    return small + large if mode == "SAME_UPPER" else large + small


def _same(size: int | str | None, stride: int, span: int) -> int | None:
    """Return the padding that makes ⌈size / stride⌉ windows, or None where it depends on a size that is not known."""
    if stride == 1:
        return span
    return max(0, (-(-size // stride) - 1) * stride + span + 1 - size) if isinstance(size, int) else None


def _constant_dims(op: Op) -> Ints | None:
    """Return the dimensions of a constant weight, if the bias is constant too or there is none."""
    held = op.tensor(1)
    if held is None or (op.has(2) and op.tensor(2) is None):
        return None
    return tuple(int(size) for size in held.shape.numpy())


def _conv(op: Op) -> Form | None:
    dims = _constant_dims(op)
    geometry = None if dims is None else _geometry(op, dims[2:])
    if dims is None or geometry is None:
        return None
    groups = int(op.attr("group", 1))
    return Form(dims[0], dims[1] * groups, groups, dims[2:], *geometry)


def _conv_transpose(op: Op) -> Form | None:
    dims = _constant_dims(op)
    automatic = str(op.attr("auto_pad", "NOTSET")) != "NOTSET" or op.attr("output_shape") is not None
    geometry = None if dims is None or automatic else _geometry(op, dims[2:])
    if dims is None or geometry is None:
        return None
    strides, dilations, first, slack = geometry
    more = op.attr("output_padding") or (0,) * len(slack)
    groups = int(op.attr("group", 1))
    slack = tuple(size - extra for size, extra in zip(slack, more, strict=True))
    return Form(dims[1] * groups, dims[0], groups, dims[2:], strides, dilations, first, slack, transposed=True)


def _pool(op: Op) -> Form | None:
    """An average over windows that all hold the same number of values is a depthwise convolution."""
    known = op.shape(0)
    taps = tuple(op.attr("kernel_shape") or ())
    if math.prod(taps) > POOLED:
        return None
    geometry = _geometry(op, taps)
    if known is None or len(known) != len(taps) + 2 or not isinstance(known[1], int) or geometry is None:
        return None
    form = Form(known[1], known[1], known[1], taps, *geometry)
    counted = op.attr("count_include_pad", 0) or not form.padded
    sizes = zip(known[2:], form.slack, form.stride, strict=True)
    # Rounded up, the last window may reach beyond the padding.
    whole = all(isinstance(n, int) and (n + slack - 1) % stride == 0 for n, slack, stride in sizes)
    return form if counted and (whole or not op.attr("ceil_mode", 0)) and not gives_nothing(op) else None


def gives_nothing(op: Op) -> bool:
    """Whether a pool's window is larger than the image: it has no output there, where a convolution fails."""
    geometry = _geometry(op, tuple(op.attr("kernel_shape") or ()))
    slacks = () if geometry is None else geometry[3]
    return any(isinstance(n, int) and n + slack < 1 for n, slack in zip((op.shape(0) or ())[2:], slacks, strict=False))


def _left_dims(op: Op) -> Ints | None:
    """Return the dimensions of a constant matrix that stands left of what it is multiplied with, or None.

    The channels are then the last axis but one, and there must be one.
    """
    # Before opset 7 its bias, a column, could not be added.
    held = op.tensor(0) if op.type == "MatMul" and op.opset >= 7 else None
    dims = () if held is None else tuple(int(size) for size in held.shape.numpy())
    return dims if len(dims) == 2 and len(op.shape(1) or ()) >= 2 else None


def _product(op: Op) -> Form | None:
    """MatMul with a constant matrix, Gemm with one on the right and a bias of one row."""
    left = _left_dims(op)
    if left is not None:
        outs, ins = left
        return Form(outs, ins)
    dims = _constant_dims(op)
    if dims is None or len(dims) != 2 or op.attr("transA", 0) or "broadcast" in op.node.attributes:
        return None
    if op.has(2):
        held = op.tensor(2)
        bias = () if held is None else tuple(held.shape.numpy())
        if len(bias) > 1 and bias[0] != 1:
            return None
    return Form(dims[0], dims[1]) if op.type == "Gemm" and op.attr("transB", 0) else Form(dims[1], dims[0])


_FORMS: dict[str, Reader] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "AveragePool": _pool, "MatMul": _product, "Gemm": _product,
}  # fmt: skip
