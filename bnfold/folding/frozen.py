"""The frozen statistics of every BatchNormalization: read from its node, or from what folding left in the metadata.

    y = gamma·(x − running_mean)/√(running_var + epsilon) + beta      (ONNX BatchNormalization, inference)

Folding removes the node but not the question whether its statistics still describe the data. So the metadata keeps
them, with the names of x and y: a value keeps its name only while it keeps its meaning, so whichever of the two is
still in the graph is the place where the BatchNorm can be observed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold import metadata
from bnfold.arrays import Float64
from bnfold.graph import BATCH_NORM, const, is_op, label, nodes_within
from bnfold.graph.constants import attr

STATISTICS = "bnfold.statistics"
VERSION = 2
EPSILON = 1e-5  # the default of the ONNX specification


@dataclass(frozen=True, eq=False)
class Frozen:
    """One BatchNorm: its name, the values x and y around it, and gamma, beta, mean, var `(C,)` in float64."""

    name: str
    input: str
    output: str
    gamma: Float64
    beta: Float64
    mean: Float64
    var: Float64
    epsilon: float = EPSILON

    @property
    def channels(self) -> int:
        return int(self.mean.size)

    @property
    def scale(self) -> Float64:
        """`(C,)`: gamma/√(var + epsilon), by which an x becomes a y."""
        with np.errstate(all="ignore"):
            return np.asarray(self.gamma / np.sqrt(self.var + self.epsilon))


def of_node(node: ir.Node) -> Frozen | None:
    """The frozen statistics of a BatchNormalization node; None where they are computed at run time.

    An initializer that a caller may override counts with the value that it has.
    """
    if len(node.inputs) < 5 or not is_op(node, BATCH_NORM):
        return None
    arrays = [_values(value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays) or len({array.size for array in arrays if array is not None}) != 1:
        return None
    gamma, beta, mean, var = (np.ravel(array) for array in arrays if array is not None)
    source, target = node.inputs[0], node.outputs[0]
    names = (label(node), "" if source is None else source.name or "", target.name or "")
    return Frozen(*names, gamma, beta, mean, var, float(attr(node, "epsilon", EPSILON)))


def frozen_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, Frozen | None]]:
    """Every BatchNormalization node of the model, control-flow bodies included, with its frozen statistics if any."""
    for node in nodes(model):
        yield node, None if in_training(node) else of_node(node)


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every BatchNormalization node of the model, control-flow bodies included."""
    for node in nodes_within(model.graph):
        if is_op(node, BATCH_NORM):
            yield node


def in_training(node: ir.Node) -> bool:
    """Whether the node normalises by the batch's statistics (`training_mode`, opset 14 and later)."""
    return bool(attr(node, "training_mode", 0))


@contextmanager
def remembered(model: ir.Model) -> Iterator[None]:
    """While the block runs, a node that disappears leaves its statistics in the metadata; earlier notes stay."""
    before = [(node, frozen) for node, frozen in frozen_nodes(model) if frozen is not None]
    yield
    gone = [frozen for node, frozen in before if node.graph is None]
    if gone:
        names = {frozen.name for frozen in gone}
        write(model, [*(frozen for frozen in recorded(model) if frozen.name not in names), *gone])


def recorded(model: ir.Model) -> list[Frozen]:
    """The statistics in the metadata; none where there are none, or none that can be read."""
    try:
        content = metadata.read(model, STATISTICS)
        return [_decoded(entry) for entry in content["batch_norms"]] if content["version"] == VERSION else []
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def write(model: ir.Model, found: Iterable[Frozen]) -> None:
    """Let the metadata hold these statistics and no others."""
    entries = [_encoded(frozen) for frozen in found]
    if entries:
        metadata.write(model, STATISTICS, {"version": VERSION, "batch_norms": entries})
    else:
        model.metadata_props.pop(STATISTICS, None)


def _encoded(frozen: Frozen) -> dict[str, Any]:
    exact = np.stack([frozen.gamma, frozen.beta, frozen.mean, frozen.var])
    with np.errstate(over="ignore"):
        short = exact.astype("<f4")
    # float32 is what nearly every model stores; nothing is rounded, a double model keeps its doubles.
    stored = short if np.array_equal(short, exact, equal_nan=True) else exact.astype("<f8")
    return {
        "name": frozen.name, "input": frozen.input, "output": frozen.output, "epsilon": frozen.epsilon,
        "type": stored.dtype.str, "data": base64.b64encode(stored.tobytes()).decode(),
    }  # fmt: skip


def _decoded(entry: Mapping[str, Any]) -> Frozen:
    kind = {"<f4": "<f4", "<f8": "<f8"}[entry["type"]]
    stored = np.frombuffer(base64.b64decode(entry["data"]), kind).reshape(4, -1).astype(np.float64)
    gamma, beta, mean, var = stored
    names = (str(entry["name"]), str(entry["input"]), str(entry["output"]))
    return Frozen(*names, gamma, beta, mean, var, float(entry["epsilon"]))


def _values(value: ir.Value | None) -> Float64 | None:
    found = const(value)
    if found is None and value is not None and value.const_value is not None:
        found = value.const_value.numpy()
    return None if found is None else np.asarray(found, dtype=np.float64)
