"""Random models of many operators from all families: joins, fan-out, several outputs, bodies, shared weights.

A model is a function of its seed and type alone. Every operator in it is continuous, so that rounding stays small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import random_layers as layers
from tests import random_routes as routes
from tests.makers import Draw
from tests.random_builder import TYPES, Builder, Family, Value

BATCH = 2
# Old notations, the types' first opsets, new operators; bfloat16 reaches convolutions in 22.
OPSETS = (6, 7, 8, 9, 10, 11, 13, 15, 17, 17, 18, 18, 21, 21, 21, 23, 23)
IR_VERSIONS = {6: 3, 7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 13: 7, 15: 8, 17: 8, 18: 8, 21: 10, 23: 11}

FAMILIES: tuple[tuple[Family, int], ...] = (
    (layers.conv, 3), (layers.conv_transpose, 1), (layers.gemm, 1), (layers.matmul, 2), (layers.attention, 1),
    (layers.arithmetic, 2), (layers.norm, 2), (layers.recurrent, 1), (layers.quantized, 2), (layers.cast, 2),
    (routes.elementwise, 4), (routes.window, 1), (routes.reduction, 1), (routes.pad, 1), (routes.resize, 1),
    (routes.transpose, 1), (routes.reshape, 2), (routes.shape_round_trip, 1), (routes.squeeze, 1),
    (routes.selection, 1), (routes.split, 1), (routes.repetition, 1), (routes.depth, 1), (routes.join, 4),
    (routes.fan_out, 1), (routes.concat, 2), (routes.branch, 1), (routes.loop, 1), (routes.scan, 1),
    (routes.function, 1),
)  # fmt: skip
_WEIGHTED = tuple(family for family, weight in FAMILIES for _ in range(weight))


@dataclass(frozen=True)
class Made:
    """A checked model, its opset, and for every node the families that made it."""

    model: onnx.ModelProto
    opset: int
    families: dict[str, frozenset[str]]


def random_model(seed: int, dtype: str = "double") -> onnx.ModelProto:
    """Return the model of a seed; see `made_model`."""
    return made_model(seed, dtype).model


def made_model(seed: int, dtype: str = "double") -> Made:
    """Make 4 to 10 steps, about every second followed by a BatchNormalization.

    `dtype` is the floating type of all values; "mixed" begins in float and casts values to other types.
    """
    draw = Draw(np.random.default_rng(seed))
    opset = 23 if dtype == "bfloat16" else draw.of(*OPSETS)
    base = "float" if dtype == "mixed" else dtype
    b = Builder(draw, base, opset)
    families = [family for family in _WEIGHTED if family is not layers.cast or dtype == "mixed"]
    shapes = [draw.of([BATCH, 4, 4, 6], [BATCH, 3, 6, 6], [BATCH, 4, 5], [BATCH, 6]) for _ in range(draw.size(1, 2))]
    b.values = [Value(f"x{k}", tuple(shape), base) for k, shape in enumerate(shapes)]
    inputs = list(b.values)
    steps = draw.size(4, 10)
    while steps > 0 or not b.nodes:  # what no value at hand suits makes nothing
        steps -= 1
        family = draw.of(*families)
        with b.family(family.__name__):
            family(b)
        if draw.of(True, False):
            with b.family("batch_norm"):
                layers.batch_norm(b)
    return Made(_checked(b, inputs, f"seed{seed}"), opset, b.families)


def _checked(b: Builder, inputs: list[Value], name: str) -> onnx.ModelProto:
    made = {output for node in b.nodes for output in node.output}
    outputs = [v for v in b.values if v.name in made and (v.name not in b.used or b.draw.size(0, 9) == 0)]
    symbol = b.draw.of("N", BATCH)
    initializers = [numpy_helper.from_array(array, key) for key, array in b.constants.items()]
    listed = IR_VERSIONS[b.opset] < 4
    given = [
        *(helper.make_tensor_value_info(v.name, TYPES[v.dtype], [symbol, *v.shape[1:]]) for v in inputs),
        *(helper.make_tensor_value_info(key, TensorProto.BOOL, shape) for key, shape in (("p", [1]), ("q", []))),
        *(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers if listed),
    ]
    graph = helper.make_graph(
        b.nodes, name, given,
        [helper.make_tensor_value_info(v.name, TYPES[v.dtype], [None] * len(v.shape)) for v in outputs],
        initializers,
    )  # fmt: skip
    domains = [helper.make_opsetid("", b.opset), *([helper.make_opsetid("local", 1)] if b.functions else [])]
    model = helper.make_model(
        graph, opset_imports=domains, ir_version=IR_VERSIONS[b.opset], functions=b.functions
    )
    onnx.checker.check_model(model, full_check=True)
    return model
