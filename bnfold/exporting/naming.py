"""Names: the user's for inputs and outputs, the module's own for nodes, as `layer1.0.bn2/BatchNormalization`."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Collection, Sequence

import onnx_ir as ir

from bnfold.graph import nodes_within

MODULE = "bnfold.module"
"""The metadata of a node that holds the name of the module which it comes from."""


def name_nodes(model: ir.Model, modules: Collection[str]) -> None:
    """Call nodes by the module they come from, as every report will; `modules` are the names that there are."""
    taken: set[str | None] = set()
    for node in nodes_within(model.graph):
        scope = _scope(node, modules)
        if scope:
            name = f"{scope}/{node.op_type}"
            node.name = name if name not in taken else fresh(name, taken)
            node.metadata_props[MODULE] = scope
        taken.add(node.name)


def _scope(node: ir.Node, modules: Collection[str]) -> str:
    """The innermost module whose code made the node; "" for the root, or where the exporter does not say."""
    # The dynamo exporter: from the root, '', over the modules inward to the traced operation.
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    if len(scopes) > 2 and scopes[0] == "":
        return str(scopes[-2])
    # TorchScript: "/stages/stages.1/conv2/conv2.1/Conv"; a child of a container repeats the container's name.
    parts: list[str] = []
    for part in (node.name or "").split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    scope = ".".join(parts)
    return scope if scope in modules else ""


def rename(model: ir.Model, values: Sequence[ir.Value], names: Sequence[str]) -> None:
    """Call the values by these names, and whatever else had them by others."""
    wanted = dict(zip((id(value) for value in values), names, strict=False))
    held = [
        *model.graph.inputs,
        *model.graph.initializers.values(),
        *(v for n in nodes_within(model.graph) for v in n.outputs),
    ]
    taken = {value.name for value in held} | set(names)
    for value in held:
        if value.name in names and id(value) not in wanted:
            value.name = fresh(str(value.name), taken)
    for value, name in zip(values, names, strict=False):
        value.name = name


def fresh(name: str, taken: Collection[str | None]) -> str:
    """`name_1`, `name_2` …: the first that is not taken."""
    return next(fresh for i in itertools.count(1) if (fresh := f"{name}_{i}") not in taken)
