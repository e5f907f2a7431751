"""Graphs for the fold tests: a notation for ONNX text with seeded constants, and three ways to evaluate a model.

    T[N,3,8,8] x            a value of the element type under test
    w[4,3,1,1]   k[]        a floating constant of that shape, named on first use
    {-1, 6}                 an integer constant
    0.5   -1.               a floating scalar constant (written with a point)
    BN(c, A.4)              BatchNormalization of 4 channels; gammas of both signs and zero
    BN(c, A.4, is_test=1)   … with attributes
    BN+(c, A.4)             … with no negative gamma;  BN0 …: no shift;  BN1 …: one scale and one shift for all channels

Every constant is a small dyadic number and running_var + epsilon a power of four, so sums and products of the
original and of the folded model are exact in float32: results are compared with `==`, not within a tolerance.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper, parser

from bnfold.arrays import Array
from bnfold.folding.fold import fold
from bnfold.folding.report import FoldReport
from bnfold.graph import Op, annotate, tensor
from bnfold.rules.sources import Source, source
from bnfold.verify.reference import Evaluator

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float": np.float32, "double": np.float64}
EPSILON = 0.0625
SIZES = {"N": 2, "B": 2, "T": 3}

_TOKEN = re.compile(
    r"(?P<keep>=\s*\[[^\]]*\]|\b(?:bool|u?int\d+|float\d*|bfloat16|double)\[[^\]]*\])"
    r"|\bT\[(?P<type>[^\]]*)\]|\bT\b(?P<scalar>(?=\s+\w+\s*[,)]))"
    r"|\bBN(?P<kind>[+01]*)\(\s*(?P<x>\w+)\s*,\s*(?P<bn>\w+)\.(?P<channels>\d+)(?P<attributes>(?:,\s*\w+\s*=\s*\w+)*)\s*\)"
    r"|\b(?P<name>\w+)\[(?P<dims>[\d,\s]*)\]"
    r"|(?<=[(,])\s*\{(?P<ints>[-\d,\s]*)\}"
    r"|(?<=[(,])\s*(?P<number>-?\d+\.\d*)(?=\s*[,)])"
)


def build(
    text: str,
    *,
    dtype: str = "float",
    opset: int = 17,
    ir_version: int = 8,
    constants: Mapping[str, Any] | None = None,
    domains: str = "",
    checked: bool = True,
) -> onnx.ModelProto:
    """Return the checked model that `text` describes, its floats of `dtype`.

    `constants` take the place of seeded ones: float64 arrays become `dtype`, all others stay as they are.
    """
    arrays: dict[str, Array] = {}

    def constant(name: str, array: Any) -> str:
        arrays.setdefault(name, np.asarray(array))
        return name

    def expand(match: re.Match[str]) -> str:
        found = match.groupdict()
        if found["keep"]:
            return match[0]
        if found["type"] is not None:
            return f"{dtype}[{found['type']}]"
        if found["bn"]:
            for name, array in statistics(found["bn"], int(found["channels"]), found["kind"] or "").items():
                constant(name, array)
            operands = ", ".join(f"{found['bn']}_{part}" for part in ("gamma", "beta", "mean", "var"))
            return f"BatchNormalization <epsilon = {EPSILON}{found['attributes']}> ({found['x']}, {operands})"
        if found["name"]:
            dims = [int(size) for size in found["dims"].split(",") if size.strip()]
            return constant(found["name"], dyadic(seeded(found["name"]), dims))
        if found["ints"] is not None:
            values = [int(n) for n in found["ints"].split(",") if n.strip()]
            return " " + constant("i_" + "_".join(map(str, values)).replace("-", "m"), np.array(values, np.int64))
        if found["number"]:
            return " " + constant("c_" + re.sub(r"\W", "_", found["number"]), float(found["number"]))
        return dtype

    body = _TOKEN.sub(expand, text)
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domains}]> g {body}')
    for name, array in (constants or {}).items():
        arrays[name] = np.asarray(array)
    for name, array in arrays.items():
        stored = array.astype(DTYPES[dtype]) if array.dtype == np.float64 else array
        model.graph.initializer.append(numpy_helper.from_array(stored, name))
    if checked:
        onnx.checker.check_model(model)
    return model


def seeded(*key: object) -> np.random.Generator:
    """A generator whose state depends on `key` alone."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def dyadic(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Halves between −2 and 2, none of them zero."""
    return np.asarray(rng.integers(1, 5, shape) * rng.choice([-0.5, 0.5], shape))


def statistics(name: str, channels: int, kind: str = "") -> dict[str, Array]:
    """Parameters of a BatchNormalization, no two channels alike in scale and shift."""
    rng = seeded(name, channels, kind)
    gamma = 2.0 ** rng.integers(-1, 2, channels)
    if channels > 1:
        gamma[:2] = 0.5, 2.0
    if "+" not in kind:
        gamma[: max(1, channels // 2)] *= -1.0
    if channels > 2:
        gamma[2] = 0.0
    order = rng.permutation(channels)
    beta = (rng.permutation(channels) - channels // 2 + 0.5) / 2.0
    mean = (rng.permutation(channels) - 1.0) / 2.0
    var = 4.0 ** rng.integers(0, 2, channels) - EPSILON
    gamma = gamma[order]
    if "0" in kind:
        beta, mean = np.zeros(channels), np.zeros(channels)
    if "1" in kind:
        sign = 1.0 if "+" in kind else -1.0
        gamma, beta, mean, var = (np.full(channels, v) for v in (2.0 * sign, 1.5, 0.5, 1.0 - EPSILON))
        beta = np.zeros(channels) if "0" in kind else beta
        mean = np.zeros(channels) if "0" in kind else mean
    parts = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    return {f"{name}_{part}": array for part, array in parts.items()}


def feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    """Seeded inputs: dyadic floats, random booleans, and zero or one for integers; symbols take their `SIZES`."""
    fixed = {tensor.name for tensor in model.graph.initializer}
    result: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in fixed:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value or SIZES.get(dim.dim_param, 2) for dim in kind.shape.dim]
        rng, target = seeded(value.name, seed), ir.DataType(kind.elem_type).numpy()
        plain = rng.integers(0, 2, shape) if target.kind in "iub" else dyadic(rng, shape)
        result[value.name] = np.asarray(plain).astype(target)
    return result


def folded(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, FoldReport]:
    """Fold a copy and return it with the report."""
    copy = ir.from_proto(onnx.ModelProto.FromString(model.SerializeToString()))
    report = fold(copy, **options)
    return ir.to_proto(copy), report


def exact(model: onnx.ModelProto, inputs: Mapping[str, Array], every: bool = False) -> dict[str, Array]:
    """Evaluate in float64; with `every`, return all values of the main graph and not only its outputs."""
    twin = ir.from_proto(model)
    if every:
        have = {value.name for value in twin.graph.outputs}
        made = [value for node in twin.graph for value in node.outputs if value.name and value.name not in have]
        twin.graph.outputs.extend(made)
    return Evaluator(twin).run(inputs)


def at_runtime(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Evaluate on ONNX Runtime's CPU provider with every graph optimization off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def operators(model: onnx.ModelProto) -> list[str]:
    """The operators in order, those of a body right after the node that holds it."""

    def walk(graph: onnx.GraphProto) -> list[str]:
        found = []
        for node in graph.node:
            found.append(node.op_type)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    found += walk(attribute.g)
        return found

    return walk(model.graph)


def cost(model: onnx.ModelProto) -> int:
    """Elementwise passes of a model: 2 for a BatchNormalization, 1 for each other affine of a value."""
    twin = ir.from_proto(onnx.inliner.inline_local_functions(model))
    annotate(twin)
    total = 0
    for node in twin.graph.all_nodes():
        found = source(Op(node))
        if node.op_type == "BatchNormalization":
            total += 2
        elif isinstance(found, Source) and tensor(node.outputs[0]) is None:
            total += found.cost
    return total
