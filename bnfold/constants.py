"""Which computed constants simplification made initializers of, by name, in the model's metadata.

It lets a verification make the simplified model again in no time, without onnxsim. What is written there is only a
hint: the constants themselves are computed anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from bnfold import metadata
from bnfold.graph import bodies

CONSTANTS = "bnfold.constants"


def note(before: ir.Model, after: ir.Model) -> None:
    """Write into a simplified model under which names its new constants hold values of the model before.

    Where both compute a value of one name, what the one reads at some place is what the other reads there.
    """
    names = {
        str(old.name): str(new.name)
        for one, two in _twins(before.graph, after.graph)
        for old, new in zip(one.inputs, two.inputs, strict=False)
        if old is not None and new is not None and old.producer() is not None and old.graph is before.graph
        if _is_constant(new) and not (_is_constant(old) and old.name == new.name)
    }
    metadata.write(after, CONSTANTS, names)


def noted(model: ir.Model) -> Mapping[str, str] | None:
    """Return the names of constants after simplification by those before it; None where nothing legible is noted."""
    try:
        found = metadata.read(model, CONSTANTS)
    except ValueError:
        return None
    if not isinstance(found, dict) or not all(isinstance(name, str) and name for name in found.values()):
        return None
    return found


def _twins(before: ir.Graph, after: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Yield the nodes of both graphs, bodies included, that compute a value of the same name."""
    makers = {value.name: node for node in before for value in node.outputs if value.name}
    for node in after:
        twin = next((makers[value.name] for value in node.outputs if value.name in makers), None)
        if twin is not None:
            yield twin, node
            for one, two in zip(bodies(twin), bodies(node), strict=False):
                yield from _twins(one, two)


def _is_constant(value: ir.Value) -> bool:
    maker = value.producer()
    return value.is_initializer() or (maker is not None and maker.op_type == "Constant")
