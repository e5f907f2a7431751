"""Kernels of the algebra, written as linear layers of a graph; `layers` is the way back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Float64
from bnfold.derived import Derived
from bnfold.graph import Op, label, note
from bnfold.graph.surgery import Names, constant
from bnfold.merging.kernels import Form, Kernel
from bnfold.merging.layers import Layer

_PREFERENCE = ("Gemm", "Conv", "ConvTranspose", "MatMul", "AveragePool")

Hold = Callable[[Float64, str], ir.Value]


def range_fault(kernel: Kernel, kind: ir.DataType) -> str | None:
    """Return why a kernel does not fit its type, or None."""
    return Derived(kernel.weight, kind).range_fault() or Derived(kernel.bias, kind).range_fault()


def preferred(layers: list[Layer]) -> Layer:
    """Return the layer whose kind of node can best hold a merged kernel: a Gemm has a bias, a pool has no weights."""
    return min(layers, key=lambda layer: _PREFERENCE.index(layer.node.op_type))


def write(
    host: Layer, x: ir.Value, kernel: Kernel, like: ir.Value, before: ir.Node, names: Names
) -> list[ir.Node]:
    """Insert `kernel` as a layer of the host's kind ahead of `before`, its value of the shape of `like`.

    Returns the layer and, where the bias takes a node of its own, that.
    """
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    stem = label(host.node)

    def hold(array: Float64, what: str) -> ir.Value:
        content = Derived(np.ascontiguousarray(array), host.dtype)
        return constant(content, names.fresh(f"{stem}_merged_{what}"), graph)

    # Before opset 11 a Gemm without a bias is invalid.
    needed = host.node.op_type == "Gemm" and Op(host.node).opset < 11
    # Behind a matrix on the left the channels are not the last axis.
    shaped = kernel.bias[:, None] if host.slot else kernel.bias
    bias = [hold(shaped, "bias")] if needed or np.any(kernel.bias != 0.0) else []
    nodes = _WRITERS.get(host.node.op_type, _convolution)(host, x, kernel, bias, hold)
    for node in nodes:
        node.name = names.fresh(f"{stem}_merged")
        node.outputs[0].name = names.fresh(f"{stem}_merged_output")
        note(node.outputs[0], like)
        graph.insert_before(before, node)
    return nodes


def _convolution(host: Layer, x: ir.Value, kernel: Kernel, bias: list[ir.Value], hold: Hold) -> list[ir.Node]:
    form, weight = kernel.form, kernel.weight
    if form.transposed:
        split = weight.reshape(form.groups, -1, *weight.shape[1:])
        weight = np.swapaxes(split, 1, 2).reshape(form.ins, -1, *form.taps)
    kind = "ConvTranspose" if form.transposed else "Conv"
    return [ir.Node("", kind, [x, hold(weight, "weight"), *bias], _attributes(form))]


def _gemm(host: Layer, x: ir.Value, kernel: Kernel, bias: list[ir.Value], hold: Hold) -> list[ir.Node]:
    # A product has no groups: the identity in it is written out.
    weight = kernel.regrouped(1).weight
    return [ir.Node("", "Gemm", [x, hold(weight, "weight"), *bias], [ir.AttrInt64("transB", 1)])]


def _matmul(host: Layer, x: ir.Value, kernel: Kernel, bias: list[ir.Value], hold: Hold) -> list[ir.Node]:
    weight = kernel.regrouped(1).weight
    product = ir.Node("", "MatMul", [hold(weight, "weight"), x] if host.slot else [x, hold(weight.T, "weight")])
    # Before opset 7 an addition repeats its operand only if told to, and then along the last axes.
    told = [ir.AttrInt64("broadcast", 1)] if Op(host.node).opset < 7 else []
    return [product, *(ir.Node("", "Add", [product.outputs[0], operand], told) for operand in bias)]


_WRITERS = {"Gemm": _gemm, "MatMul": _matmul}


def _attributes(form: Form) -> list[ir.Attr]:
    return [
        ir.AttrInt64s("kernel_shape", form.taps),
        ir.AttrInt64s("strides", form.stride),
        ir.AttrInt64s("dilations", form.dilation),
        ir.AttrInt64s("pads", form.pads),
        ir.AttrInt64("group", form.groups),
    ]
