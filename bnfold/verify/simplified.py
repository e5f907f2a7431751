"""Simplification made again without onnxsim: constants take the place of what always computes them.

Which values they replace is noted in the candidate's metadata (`bnfold.constants`), where anybody may have written
anything. So each constant is computed here, from the original alone: whatever is noted, the result is the original.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.errors import ModelError
from bnfold.graph import annotate, bodies, is_op, overridable, shape
from bnfold.graph.constants import FAULTS, attr
from bnfold.simplify import RANDOM
from bnfold.verify.kernels import KERNELS, Call, Unsupported
from bnfold.verify.reference import attributes
from bnfold.verify.structure import tensor_difference

# These hand integers on as they are, from their first input.
MOVES = ("Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Identity")
# Stands for a size that is not known.
UNKNOWN = np.iinfo(np.int64).min


def simplified(original: ir.Model, names: Mapping[str, str]) -> ir.Model | None:
    """Return the original with constants for the values that `names` lists, under the names that it gives them.

    None where one of the values is no constant or can't be computed, or a name is another value's.
    """
    model = original.clone()
    values, taken = _values(model.graph), set(_names(model.graph))
    if not values.keys() >= names.keys() or any(new in taken and names.get(new) != new for new in names.values()):
        return None
    held = _computed(original, names)
    if held is None:
        return None
    made: dict[str, ir.Value] = {}
    for (old, new), found in zip(names.items(), held, strict=True):
        kind, sizes = ir.TensorType(found.dtype), ir.Shape(found.shape.numpy())
        constant = made.setdefault(new, ir.Value(name=new, type=kind, shape=sizes, const_value=found))
        assert constant.const_value is not None
        if tensor_difference(constant.const_value, found) is not None:
            return None
        ir.convenience.replace_all_uses_with(values[old], constant, replace_graph_outputs=True)
        if old == new:
            values[old].name = None
    for constant in made.values():
        model.graph.register_initializer(constant)
    common.RemoveUnusedNodesPass()(model)
    return model


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values that nodes compute, by name."""
    return {str(value.name): value for node in graph for value in node.outputs if value.name}


def _names(graph: ir.Graph) -> Iterator[str]:
    """Every name that the graph and its bodies give a value."""
    yield from (str(value.name) for value in (*graph.inputs, *graph.initializers.values()))
    yield from _values(graph)
    for node in graph:
        for body in bodies(node):
            yield from _names(body)


def _computed(original: ir.Model, names: Collection[str]) -> list[ir.TensorProtocol] | None:
    """Return what the named values always are; None where one depends on an input.

    Integers, sizes above all, are computed as they come by; what depends on them and on constants, by ONNX Runtime.
    """
    model = original.clone()
    annotate(model)
    constant = {value for value in model.graph.initializers.values() if not overridable(value)}
    integers = {v: v.const_value.numpy() for v in constant if v.const_value is not None and _is_integer(v.const_value)}
    held: dict[str, ir.TensorProtocol] = {}
    for node in [node for node in model.graph if _repeats(node)]:
        for value, array in zip(node.outputs, _integers(node, integers), strict=False):
            integers[value] = array
            if not (array == UNKNOWN).any():
                held[str(value.name)] = ir.tensor(array)
                known = ir.Value(name=f"{value.name}/known", const_value=held[str(value.name)])
                model.graph.register_initializer(known)
                ir.convenience.replace_all_uses_with(value, known, replace_graph_outputs=True)
                integers[known] = array
                constant.add(known)
        if constant.issuperset(value for value in node.inputs if value is not None):
            constant.update(node.outputs)
    wanted = [value for name, value in _values(model.graph).items() if name in names and name not in held]
    if not constant.issuperset(wanted):
        return None
    if wanted:
        graph = ir.convenience.extract(model.graph, [], wanted)
        try:
            session = runtime.session(ir.Model(graph, ir_version=original.ir_version), optimize="off")
            held |= {name: ir.tensor(array) for name, array in runtime.run(session, {}).items()}
        except (ModelError, TypeError):
            return None
    return [held[name] for name in names]


def _repeats(node: ir.Node) -> bool:
    """Whether a node always gives the same for the same inputs."""
    return not node.domain and node.op_type not in RANDOM and not any(bodies(node))


def _is_integer(held: ir.TensorProtocol) -> bool:
    return held.dtype.is_integer() or held.dtype == ir.DataType.BOOL


def _integers(node: ir.Node, known: Mapping[ir.Value, Array]) -> Sequence[Array]:
    """Return the integers that a node gives, some of which may be unknown; nothing where it gives none, or none known.

    Of a Shape the sizes of some axes may be known; what only moves numbers about, moves the unknown ones too.
    """
    if is_op(node, "Shape"):
        sizes = [size if isinstance(size, int) else UNKNOWN for size in shape(node.inputs[0]) or ()]
        return [np.array(sizes, np.int64)[attr(node, "start", 0) : attr(node, "end", None)]] if sizes else []
    arrays = [None if value is None else known.get(value) for value in node.inputs]
    if any(array is None for array, value in zip(arrays, node.inputs, strict=True) if value is not None):
        return []
    unsure = [n for n, array in enumerate(arrays) if array is not None and (array == UNKNOWN).any()]
    if unsure and not (node.op_type == "Concat" or (node.op_type in MOVES and unsure == [0])):
        return []
    opset = int(node.graph.opset_imports.get("", 1)) if isinstance(node.graph, ir.Graph) else 1
    try:
        found = KERNELS[node.op_type](Call(node.op_type, attributes(node), opset, len(node.outputs)), arrays)
    except (Unsupported, *FAULTS):
        return []
    return found if all(isinstance(array, np.ndarray) and array.dtype.kind in "iub" for array in found) else []
