"""Constant folding by onnxsim, in a child process that may crash, hang or run out of memory without harm.

onnxsim takes two seconds and 300 MB to import, so by default it runs only where it can find something to do.
Its fusions stay off: folding is this package's work, with a route or a reason for every BatchNormalization.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from onnx_ir.passes import common

from bnfold.errors import BnfoldError, ModelError
from bnfold.files import scratch_folder
from bnfold.graph import is_op, node_count, nodes_within, total_bytes
from bnfold.io import detached, load, save

Mode = Literal["auto", "always", "never"]

SMALL_NODES = 20
LARGE_BYTES = 512 << 20
TIMEOUT_S = 300.0
# Their results are others in every run.
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


@dataclass(frozen=True)
class Simplified:
    """What the step did: `status` is "done", "skipped" or "failed", `reason` says why."""

    status: Literal["done", "skipped", "failed"]
    reason: str
    nodes_before: int
    nodes_after: int
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def simplify(model: ir.Model, mode: Mode = "auto", *, timeout: float = TIMEOUT_S) -> tuple[ir.Model, Simplified]:
    """Return the model with its constant subgraphs folded, or the model itself and the reason why not.

    A child process that fails or takes longer than `timeout` seconds is reported, not raised.
    """
    count = node_count(model)
    skip = "turned off" if mode == "never" else _needless(model) if mode == "auto" else None
    if skip is None and total_bytes(model) > LARGE_BYTES:
        skip = f"the model holds more than {LARGE_BYTES >> 20} MiB, of which onnxsim would keep several copies"
    if skip is not None:
        return model, Simplified("skipped", skip, count, count)
    start = time.monotonic()
    simpler, failure = _in_child(model, timeout)
    seconds = time.monotonic() - start
    if simpler is None:
        return model, Simplified("failed", failure, count, count, seconds)
    return simpler, Simplified("done", "", count, node_count(simpler), seconds)


def constant_nodes(model: ir.Model) -> int:
    """Number of nodes in the main graph whose result is the same in every run."""
    constant: set[ir.Value] = {v for v in model.graph.initializers.values() if not v.is_graph_input()}
    count = 0
    for node in model.graph:
        if node.op_type == "Constant":
            constant.update(node.outputs)
            continue
        inputs = [value for value in node.inputs if value is not None]
        known_shape = node.op_type == "Shape" and inputs[0].shape is not None and inputs[0].shape.is_static()
        if known_shape or (inputs and constant.issuperset(inputs) and node.op_type not in RANDOM):
            constant.update(node.outputs)
            count += 1
    return count


def _needless(model: ir.Model) -> str | None:
    if node_count(model) < SMALL_NODES:
        return "the graph is small"
    if constant_nodes(model) or any(map(_knows_a_size, model.graph)):
        return None
    return "the graph has no constant subgraph"


def _knows_a_size(node: ir.Node) -> bool:
    """Whether a node asks for a shape that may be fixed in part, such as all but the batch."""
    shape = node.inputs[0].shape if is_op(node, "Shape") and node.inputs[0] is not None else ()
    return shape is None or any(isinstance(size, int) for size in shape)


def _in_child(model: ir.Model, timeout: float) -> tuple[ir.Model | None, str]:
    with scratch_folder() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        save(model, before, external=False)
        keep = any(value.is_graph_input() for value in model.graph.initializers.values())
        command = [sys.executable, "-m", "bnfold.simplify", str(before), str(after), str(int(keep))]
        try:
            done = subprocess.run(command, timeout=timeout, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            return None, f"onnxsim did not finish within {timeout:g} s and was stopped"
        if done.returncode < 0:
            return None, f"onnxsim was killed by signal {-done.returncode}"
        if done.returncode > 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return None, f"onnxsim failed: {lines[-1]}"
        try:
            simpler = detached(load(after))  # that file is about to go
            common.LiftConstantsToInitializersPass()(simpler)
            common.RemoveUnusedNodesPass()(simpler)
            _restore_interface(model, simpler)
        except BnfoldError as error:
            return None, f"onnxsim's result was refused: {error}"
    return simpler, ""


def _restore_interface(model: ir.Model, simpler: ir.Model) -> None:
    """Undo what is none of a simplifier's business: marks of its own, and the declarations of inputs and outputs.

    Overridable initializers that nothing reads come back too; a caller may still feed them.

    Raises `ModelError` if inputs, outputs or versions changed beyond that.
    """
    present = {value.name: value for value in simpler.graph.inputs}
    for value in model.graph.inputs:
        if value.name not in present and value.is_initializer() and not value.uses():
            again = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
            simpler.graph.initializers.add(again)
            present[value.name] = again
    if set(present) == {value.name for value in model.graph.inputs}:
        simpler.graph.inputs[:] = [present[value.name] for value in model.graph.inputs]
    for kind in ("inputs", "outputs"):
        if [v.name for v in getattr(model.graph, kind)] != [v.name for v in getattr(simpler.graph, kind)]:
            raise ModelError(f"the model's {kind} changed")
        for value, twin in zip(getattr(model.graph, kind), getattr(simpler.graph, kind), strict=True):
            twin.type, twin.shape, twin.doc_string = value.type, value.shape, value.doc_string
            _replace(twin.metadata_props, value.metadata_props)
            twin.meta.update(value.meta)
    if (model.ir_version, model.opset_imports) != (simpler.ir_version, simpler.opset_imports):
        raise ModelError("the model's IR version or opsets changed")
    _replace(simpler.metadata_props, model.metadata_props)
    _replace(simpler.graph.metadata_props, model.graph.metadata_props)
    documented = {node.name: node for node in nodes_within(model.graph) if node.name}
    for node in nodes_within(simpler.graph):
        original = documented.get(node.name or "")
        if original is not None and original.op_type == node.op_type:
            node.doc_string = original.doc_string
            _replace(node.metadata_props, original.metadata_props)


def _replace(found: dict[str, str], original: dict[str, str]) -> None:
    found.clear()
    found.update(original)


def _child(before: str, after: str, keep_inputs: str) -> None:
    import onnx
    import onnxsim

    model = onnx.load(before)
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            # Older exporters wrote -1 where any size is meant; onnxsim would compute with it.
            if dim.dim_value < 0:
                dim.ClearField("dim_value")
    simpler, _ = onnxsim.simplify(
        model,
        perform_optimization=False,  # with any of its passes on, onnxsim scales weights in their own type
        mutable_initializer=keep_inputs == "1",
        tensor_size_threshold="64MB",
    )
    onnx.save(simpler, after)


if __name__ == "__main__":
    _child(*sys.argv[1:4])
