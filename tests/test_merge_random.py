"""Random graphs of linear branches: merging leaves the same function, in float64 and on ONNX Runtime."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from bnfold.folding.report import FoldReport
from bnfold.rewrite import rewrite
from tests.graphs import at_runtime, exact

BLOCKS, EACH = 8, 40
TYPES = {"double": np.float64, "float": np.float32, "float16": np.float16}
# Of the largest value: a few roundings of the type, over sums of up to some hundred products.
TOLERANCE = {"double": 2.0**-38, "float": 2.0**-14, "float16": 2.0**-4}


class Net:
    """A graph that grows by branches, chains and what may stand between them; `at` is the value it stands at."""

    def __init__(self, seed: int) -> None:
        self.random, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self.rank = self.random.choice([0, 0, 1, 2, 2])
        self.dynamic = self.random.random() < 0.3
        width = self.random.choice([2, 4])
        sizes = [self.random.choice([7, 8, 9]) for _ in range(max(self.rank, 1))]
        self.axis = 1 if self.rank else self.random.choice([-1, -2])
        self.start = (2, *sizes, width) if self.axis == -1 else (2, width, *sizes)
        self.outputs: list[str] = []
        self.at, self.shape = "x", self.start
        for _ in range(self.random.randint(1, 3)):
            step = self.random.choice([self.branches, self.branches, self.chain])
            step()
            if self.random.random() < 0.5:
                self.at = self.node(self.random.choice(["Relu", "Sigmoid"]), self.at)
        if self.rank and self.maybe(0.4):
            self.averaged()
        self.outputs = [*self.outputs, self.at]

    # Nodes

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n_{name}", **attributes))
        return name

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = scale * self.rng.normal(size=shape)
        return name

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def around(self, value: str, width: int) -> str:
        """Sometimes an affine, an Identity, or a reader outside."""
        side = (width, *(1,) * (self.rank or -1 - self.axis))
        if self.maybe(0.15):
            parts = [self.weight(width) for _ in range(3)]
            var = f"w{len(self.weights)}"
            self.weights[var] = self.rng.uniform(0.5, 2.0, width)
            if self.rank:
                value = self.node("BatchNormalization", value, *parts, var)
        if self.maybe(0.2):
            op = self.random.choice(["Mul", "Add", "Sub", "Div"])
            pair = [value, self.weight(*side, scale=3.0)]
            value = self.node(op, *(pair[::-1] if op == "Sub" and self.maybe(0.5) else pair))
        if self.maybe(0.1):
            value = self.node("Neg", value)
        if self.maybe(0.1):
            value = self.node("Identity", value)
        if self.maybe(0.05):
            self.outputs.append(value)
        return value

    def layer(self, x: str, shape: tuple[int, ...], out: int, geometry: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
        """A linear layer of `out` channels: its value and shape."""
        ins = shape[self.axis]
        scale = ins**-0.5
        if self.axis == -1:
            value = self.node("MatMul", x, self.weight(ins, out, scale=scale))
            return (self.node("Add", value, self.weight(out)) if self.maybe(0.3) else value), (*shape[:-1], out)
        if self.axis == -2:
            value = self.node("MatMul", self.weight(out, ins, scale=scale), x)
            return (self.node("Add", value, self.weight(out, 1)) if self.maybe(0.3) else value), (2, out, shape[-1])
        groups = self.random.choice([g for g in (1, 1, 2, ins) if ins % g == 0 and out % g == 0])
        bias = [self.weight(out)] if self.maybe(0.5) else []
        pads, stride = geometry["pads"], geometry["strides"]
        if geometry["op"] == "AveragePool" and out == ins:
            counted = int(self.maybe(0.8))
            rest = {k: v for k, v in geometry.items() if k in ("kernel_shape", "pads", "strides")}
            if all(p < k for p, k in zip(pads, geometry["kernel_shape"] * 2, strict=True)):
                value = self.node("AveragePool", x, count_include_pad=counted, **rest)
                return value, (*shape[:2], *self.sizes(shape, {**geometry, "dilations": [1] * self.rank}))
        given = {k: v for k, v in geometry.items() if k != "op"}
        taps = geometry["kernel_shape"]
        if geometry["op"] == "ConvTranspose":
            value = self.node("ConvTranspose", x, self.weight(ins, out // groups, *taps, scale=scale), *bias,
                              group=groups, **given)  # fmt: skip
            grown = [
                s * (n - 1) + d * (k - 1) + 1 - pads[a] - pads[a + self.rank]
                for a, (n, k, s, d) in enumerate(zip(shape[2:], taps, stride, geometry["dilations"], strict=True))
            ]
            return value, (shape[0], out, *grown)
        value = self.node("Conv", x, self.weight(out, ins // groups, *taps, scale=scale), *bias, group=groups, **given)
        return value, (shape[0], out, *self.sizes(shape, geometry))

    def sizes(self, shape: tuple[int, ...], geometry: dict[str, Any]) -> list[int]:
        axes = zip(shape[2:], geometry["kernel_shape"], geometry["strides"], geometry["dilations"], strict=True)
        pads = geometry["pads"]
        return [
            (n + pads[a] + pads[a + self.rank] - d * (k - 1) - 1) // s + 1 for a, (n, k, s, d) in enumerate(axes)
        ]

    def geometry(self, stride: list[int] | None = None, slack: int | None = None, op: str = "Conv") -> dict[str, Any]:
        """Kernel size, dilation and padding on each axis; with `slack`, as many windows as that asks for."""
        choice = self.random.choice
        stride = stride or [choice([1, 1, 2])] * self.rank
        taps, dilations, front, back, small = [], [], [], [], self.maybe(0.3)
        for _ in range(self.rank):
            k, d = 1 if small else choice([1, 2, 3, 3]), choice([1, 1, 2])
            total = max(0, slack + d * (k - 1)) if slack is not None else choice([0, 1, 2])
            before = choice([total // 2, total // 2, self.random.randint(0, total)])
            taps.append(k)
            dilations.append(d if k > 1 else 1)
            front.append(before)
            back.append(total - before)
        if op == "AveragePool":
            dilations = [1] * self.rank
        return {"op": op, "kernel_shape": taps, "strides": stride, "dilations": dilations, "pads": front + back}

    # Steps

    def branches(self) -> None:
        """Two to five branches of one value, and what else has their shape, in a tree of additions."""
        choice = self.random.choice
        stride, slack = [choice([1, 1, 2])] * self.rank, choice([0, 0, -1])
        out = choice([self.shape[self.axis], self.shape[self.axis], 4])
        kind = choice(["Conv", "Conv", "Conv", "ConvTranspose"])
        found: dict[tuple[int, ...], list[str]] = {}
        for _ in range(self.random.randint(2, 5)):
            pool = kind == "Conv" and self.maybe(0.2)
            # With a stride, windows that are not centred on each other may be as many.
            off = choice([0, 0, 0, 1, -1]) if stride != [1] * self.rank else 0
            geometry = self.geometry(stride, slack + off, "AveragePool" if pool else kind)
            value, shape = self.layer(self.at, self.shape, out, geometry)
            found.setdefault(shape, []).append(self.around(value, out))
        if self.maybe(0.6):
            found.setdefault(self.shape, []).append(self.around(self.at, self.shape[self.axis]))
        shape, values = max(found.items(), key=lambda item: len(item[1]))
        if self.maybe(0.3):
            values.append(self.node("Sigmoid", choice(values)))
        self.random.shuffle(values)
        while len(values) > 1:
            if len(values) > 2 and self.maybe(0.2):
                values = [*values[3:], self.node("Sum", *values[:3])]
            else:
                joined = self.node(choice(["Add", "Sub"]), *values[:2])
                values = [*values[2:], self.around(joined, shape[self.axis])]
        self.at, self.shape = values[0], shape

    def chain(self) -> None:
        """Two or three layers one after the other."""
        for _ in range(self.random.randint(2, 3)):
            op = self.random.choice(["Conv", "Conv", "Conv", "AveragePool", "ConvTranspose"])
            geometry = self.geometry(slack=self.random.choice([0, None]), op=op)
            if self.maybe(0.5):
                geometry["pads"] = [0] * (2 * self.rank)
            before = len(self.nodes)
            value, shape = self.layer(self.at, self.shape, self.random.choice([2, 4, 16]), geometry)
            if min(shape[2:], default=1) < 3 or max(shape[2:], default=1) > 24:
                del self.nodes[before:]
                return
            self.at, self.shape = self.around(value, shape[self.axis]), shape

    def averaged(self) -> None:
        """A 1×1 convolution, and an average of any borders behind it."""
        choice, out = self.random.choice, self.random.choice([2, 8, 16])
        bias = [self.weight(out)] if self.maybe(0.5) else []
        value = self.node("Conv", self.at, self.weight(out, self.shape[1], *(1,) * self.rank), *bias)
        if self.maybe(0.3):
            self.at = self.node(choice(["GlobalAveragePool", "ReduceMean"]), self.around(value, out))
            return
        pads = [choice([0, 0, 1]) for _ in range(2 * self.rank)]
        self.at = self.node(
            "AveragePool", self.around(value, out), kernel_shape=[choice([2, 3]) for _ in range(self.rank)], pads=pads,
            strides=[choice([1, 2])] * self.rank, count_include_pad=choice([0, 1]), ceil_mode=int(self.maybe(0.2)),
        )  # fmt: skip

    # The model

    def model(self, dtype: str) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(TYPES[dtype]))
        free = [f"d{axis}" if self.dynamic and axis != self.axis % len(self.start) else size
                for axis, size in enumerate(self.start)]  # fmt: skip
        values = [onnx.ValueInfoProto(name=name, type=onnx.TypeProto(tensor_type={"elem_type": kind}))
                  for name in dict.fromkeys(self.outputs)]  # fmt: skip
        used = {name for node in self.nodes for name in node.input}
        held = [numpy_helper.from_array(a.astype(TYPES[dtype]), n) for n, a in self.weights.items() if n in used]
        graph = helper.make_graph(self.nodes, "g", [helper.make_tensor_value_info("x", kind, free)], values, held)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(made, strict_mode=True)


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, FoldReport]:
    copy = ir.from_proto(model)
    report = rewrite(copy)
    return ir.to_proto(copy), report


def fault(seed: int) -> tuple[str, Counter[str]]:
    """What is wrong with the merged graph of a seed, and how many merges there were by which law."""
    net = Net(seed)
    if net.at == "x" or "x" in net.outputs:
        return "", Counter()
    model = net.model("double")
    result, report = rewritten(model)
    merged = [merge for merge in report.merges if merge.into is not None]
    laws = Counter[str](merge.law for merge in merged)
    onnx.checker.check_model(result, full_check=True)
    if any(merge.after.total > merge.before.total for merge in merged):
        return "a merge costs more", laws
    again, _ = rewritten(result)
    if again.SerializeToString(deterministic=True) != result.SerializeToString(deterministic=True):
        return "a second run changes the model", laws
    x = np.random.default_rng(seed).normal(size=net.start)
    before, after = exact(model, {"x": x}, every=True), exact(result, {"x": x}, every=True)
    names = before.keys() & after.keys()
    if not {value.name for value in model.graph.output} <= names:
        return "an output is missing", laws
    wrong = [name for name in names if not close(after[name], before[name], "double")]
    dtype = "float16" if seed % 10 == 0 else "float"
    model = net.model(dtype)
    fed = {"x": x.astype(TYPES[dtype])}
    theirs = at_runtime(model, fed)
    if any(array.size == 0 for array in theirs.values()):
        return "", laws  # a pool larger than its image: a convolution in its place refuses such a size
    ours = at_runtime(rewritten(model)[0], fed)
    wrong += [f"{name} ({dtype})" for name in theirs if not close(ours[name], theirs[name], dtype)]
    return ", ".join(sorted(wrong)), laws


def close(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], dtype: str) -> bool:
    if ours.shape != theirs.shape:
        return False
    off = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
    return bool(off <= TOLERANCE[dtype] * max(1.0, np.abs(theirs.astype(np.float64)).max(initial=0.0)))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_graphs(block: int) -> None:
    seeds = range(block * EACH, (block + 1) * EACH)
    found = {seed: fault(seed) for seed in seeds}
    assert {seed: said for seed, (said, _) in found.items() if said} == {}
    assert sum(bool(laws) for _, laws in found.values()) > EACH // 3
    assert {law for _, laws in found.values() for law in laws} == {"sum", "composition", "exchange"}
