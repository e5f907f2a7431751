"""Small networks with BatchNorm, a textbook fold of them written for the tests alone, and the faults of such folds.

`fold` is what a third party might do: it knows Conv, ConvTranspose and Gemm with a BatchNormalization behind them, in
float64 or, as most tools do, in float32. `FAULTS` are its bugs, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.arrays import Array

EPSILON = 1e-5


class Builder:
    """Adds layers with seeded weights; the value it stands at is the last layer's output."""

    def __init__(self, seed: int, channels: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.at, self.width = "x", channels

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a node on the current value and further inputs; return its output."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.at, *inputs], [name], name=f"n_{name}", **attrs))
        self.at = name
        return name

    def weight(self, *shape: int, scale: float = 1.0, positive: bool = False) -> str:
        name = f"w{len(self.weights)}"
        value = self.rng.standard_normal(shape) if not positive else self.rng.uniform(0.3, 2.0, shape)
        self.weights[name] = (scale * value).astype(np.float32)
        return name

    def conv(self, out: int, kernel: int = 3, group: int = 1, bias: bool = False, **attrs: Any) -> Builder:
        fan = self.width // group * kernel * kernel
        extra = [self.weight(out, scale=0.1)] if bias else []
        attrs = {"pads": [kernel // 2] * 4, **attrs}
        w = self.weight(out, self.width // group, kernel, kernel, scale=(2 / fan) ** 0.5)
        self.node("Conv", w, *extra, group=group, **attrs)
        self.width = out
        return self

    def transposed(self, out: int, group: int = 1, **attrs: Any) -> Builder:
        w = self.weight(self.width, out // group, 3, 3, scale=(2 / (self.width // group * 4)) ** 0.5)
        self.node("ConvTranspose", w, group=group, strides=[2, 2], **attrs)
        self.width = out
        return self

    def gemm(self, out: int, scale: float = 1.0) -> Builder:
        w, b = self.weight(out, self.width, scale=scale * self.width**-0.5), self.weight(out, scale=0.1 * scale)
        self.node("Gemm", w, b, transB=1)
        self.width = out
        return self

    def norm(self) -> Builder:
        n = self.width
        parts = [self.weight(n), self.weight(n, scale=0.3), self.weight(n, scale=0.5), self.weight(n, positive=True)]
        self.node("BatchNormalization", *parts, epsilon=EPSILON)
        return self

    def relu(self) -> Builder:
        self.node("Relu")
        return self

    def model(self, shape: list[Any]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes, "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [onnx.ValueInfoProto(name="y", type=onnx.TypeProto(tensor_type={"elem_type": TensorProto.FLOAT}))],
            [numpy_helper.from_array(v, k) for k, v in self.weights.items()],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
        onnx.checker.check_model(made, full_check=True)
        return made


def plain(seed: int, scale: float = 1.0) -> onnx.ModelProto:
    """A classifier: two Conv-BN-Relu, pooled, Gemm; dynamic batch."""
    b = Builder(seed, 3).conv(8).norm().relu().conv(8, bias=True, strides=[2, 2]).norm().relu()
    b.node("GlobalAveragePool")
    b.node("Flatten")
    return b.gemm(10, scale).model(["N", 3, 12, 12])


def residual(seed: int, scale: float = 1.0) -> onnx.ModelProto:
    """A residual block with a projection; the output is a map, scaled by its last convolution."""
    b = Builder(seed, 3).conv(8).norm().relu()
    before = b.at
    b.conv(8).norm().relu().conv(8).norm()
    deep = b.at
    b.at = before
    b.conv(8, kernel=1).norm()
    b.node("Add", deep)
    b.relu().conv(6)
    b.weights[f"w{len(b.weights) - 1}"] *= np.float32(scale)
    return b.model([1, 3, 10, 10])


def separable(seed: int, scale: float = 1.0) -> onnx.ModelProto:
    """Depthwise and grouped convolutions; the last BatchNormalization is the output, scaled by gamma and beta."""
    b = Builder(seed, 4).conv(8, group=2).norm().relu().conv(8, group=8).norm().relu().conv(12, kernel=1).norm()
    for name in b.nodes[-1].input[1:3]:
        b.weights[name] = b.weights[name] * np.float32(scale)
    return b.model([2, 4, 9, 7])


def perceptron(seed: int, scale: float = 1.0) -> onnx.ModelProto:
    """Gemm-BN-Relu twice and a last Gemm."""
    return Builder(seed, 20).gemm(32).norm().relu().gemm(24).norm().relu().gemm(5, scale).model(["N", 20])


def decoder(seed: int, scale: float = 1.0) -> onnx.ModelProto:
    """Grouped and plain transposed convolutions with BN behind them."""
    b = Builder(seed, 4).transposed(6, group=2).norm().relu().transposed(6, pads=[1, 1, 1, 1]).norm().relu().conv(3)
    b.weights[f"w{len(b.weights) - 1}"] *= np.float32(scale)
    return b.model([1, 4, 5, 5])


NETS: dict[str, Callable[[int, float], onnx.ModelProto]] = {
    "plain": plain, "residual": residual, "separable": separable, "perceptron": perceptron, "decoder": decoder,
}  # fmt: skip


@dataclass
class Layer:
    """What one fold works with: the layer's tensors, the BN's, the channel axis of W and the groups."""

    w: Array
    b: Array
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    axis: int
    group: int


Fault = Callable[[Layer, np.random.Generator], tuple[Array, Array]]


def folded_tensors(layer: Layer, scale: Array | None = None, mean: Array | None = None) -> tuple[Array, Array]:
    """W·s and s·(b − μ) + β in the layer's own precision."""
    epsilon = layer.var.dtype.type(np.float32(EPSILON))
    s = layer.gamma / np.sqrt(layer.var + epsilon) if scale is None else scale
    mu = layer.mean if mean is None else mean
    if layer.axis == 0:
        w = layer.w * s.reshape(-1, *[1] * (layer.w.ndim - 1))
    else:
        split = layer.w.reshape(layer.group, -1, *layer.w.shape[1:])
        w = (split * s.reshape(layer.group, 1, -1, *[1] * (layer.w.ndim - 2))).reshape(layer.w.shape)
    return w, s * (layer.b - mu) + layer.beta


def _rounded(w: Array, bits: int) -> Array:
    """Keep `bits` bits of the significand, as float16 (11) and TF32 (11, float32's exponents) do."""
    mantissa, exponent = np.frexp(w)
    return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent)


def _faulty(change: Callable[[Array, Array, Layer, np.random.Generator], tuple[Array, Array]]) -> Fault:
    def fault(layer: Layer, rng: np.random.Generator) -> tuple[Array, Array]:
        return change(*folded_tensors(layer), layer, rng)

    return fault


def _swapped(b: Array, rng: np.random.Generator) -> Array:
    i, j = rng.choice(b.size, 2, replace=False)
    b = b.copy()
    b[[i, j]] = b[[j, i]]
    return b


def _one_channel(layer: Layer, w: Array, rng: np.random.Generator, change: Callable[[Array], Array]) -> Array:
    w = w.copy()
    index = (slice(None),) * layer.axis + (int(rng.integers(w.shape[layer.axis])),)
    w[index] = change(w[index])
    return w


def _one_weight(w: Array, rng: np.random.Generator) -> Array:
    """One per cent on one weight of the larger half: a weight near zero would hardly be a fault."""
    w = w.copy()
    large = np.flatnonzero(np.abs(w) >= np.median(np.abs(w)))
    w.flat[rng.choice(large)] *= 1.01
    return w


def _without(layer: Layer, rng: np.random.Generator, name: str) -> tuple[Array, Array]:
    value = getattr(layer, name).copy()
    value[np.argsort(np.abs(value))[rng.integers(value.size // 2, value.size)]] = 0
    return folded_tensors(Layer(**{**layer.__dict__, name: value}))


FAULTS: dict[str, Fault] = {
    "epsilon ten times": lambda l, r: folded_tensors(l, l.gamma / np.sqrt(l.var + 10 * EPSILON)),
    "epsilon outside the root": lambda l, r: folded_tensors(l, l.gamma / (np.sqrt(l.var) + EPSILON)),
    "mean and var swapped": lambda l, r: folded_tensors(
        l, l.gamma / np.sqrt(np.abs(l.mean) + EPSILON), l.var
    ),
    "scale off by one": lambda l, r: folded_tensors(l, np.roll(l.gamma / np.sqrt(l.var + EPSILON), 1)),
    "bias off by one": _faulty(lambda w, b, l, r: (w, np.roll(b, 1))),
    "two biases swapped": _faulty(lambda w, b, l, r: (w, _swapped(b, r))),
    "beta dropped in a channel": lambda l, r: _without(l, r, "beta"),
    "mean dropped in a channel": lambda l, r: _without(l, r, "mean"),
    "gamma without its sign": lambda l, r: folded_tensors(l, np.abs(l.gamma) / np.sqrt(l.var + EPSILON)),
    "weights in float16": _faulty(lambda w, b, l, r: (w.astype(np.float16).astype(w.dtype), b)),
    "weights in TF32": _faulty(lambda w, b, l, r: (_rounded(w, 11), b)),
    "a channel + 0.1 %": _faulty(lambda w, b, l, r: (_one_channel(l, w, r, lambda v: v * 1.001), b)),
    "a weight + 1 %": _faulty(lambda w, b, l, r: (_one_weight(w, r), b)),
}


def fold(
    model: onnx.ModelProto, *, fault: str | None = None, where: int = 0, seed: int = 0, dtype: Any = np.float64
) -> onnx.ModelProto:
    """Fold each BN into the layer before it, computing in `dtype`; the `where`-th fold (modulo) has the `fault`."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    arrays = {t.name: numpy_helper.to_array(t).astype(dtype) for t in graph.initializer}
    makers = {n.output[0]: n for n in graph.node}
    norms = [n for n in graph.node if n.op_type == "BatchNormalization"]
    rng = np.random.default_rng(seed)
    for index, norm in enumerate(norms):
        maker = makers[norm.input[0]]
        attrs = {a.name: helper.get_attribute_value(a) for a in maker.attribute}
        axis = 1 if maker.op_type == "ConvTranspose" else 0
        gamma, beta, mean, var = (arrays[n] for n in norm.input[1:5])
        b = arrays[maker.input[2]] if len(maker.input) > 2 else np.zeros_like(gamma)
        layer = Layer(arrays[maker.input[1]], b, gamma, beta, mean, var, axis, attrs.get("group", 1))
        faulty = fault is not None and index == where % len(norms)
        w, b = FAULTS[fault](layer, rng) if faulty and fault else folded_tensors(layer)
        names = [f"{maker.output[0]}_W", f"{maker.output[0]}_B"]
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(v).astype(np.float32), n) for n, v in zip(names, (w, b), strict=True)
        )
        maker.input[:] = [maker.input[0], *names]
        maker.output[0] = norm.output[0]
        graph.node.remove(norm)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]
    onnx.checker.check_model(result, full_check=True)
    return result
