"""Model-local functions: their parameters are formal, so what folding has laws for is inlined first."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from bnfold.graph import BATCH_NORM, Op, all_nodes, is_op, nodes_within
from bnfold.rules import rule_for
from bnfold.rules.sources import SOURCES


def inline(model: ir.Model) -> None:
    """Inline functions that hold an affine; in a model with a BatchNormalization also those that might let one pass.

    A function stays whose operators mean something else in the opset of the model.
    """
    calls = _Calls(model)
    normalized = any(is_op(node, BATCH_NORM) for node in all_nodes(model))
    chosen = {
        identifier for identifier, function in model.functions.items()
        if calls.harmonize(function) and (calls.holds_affine(function) or (normalized and calls.has_law(function)))
    }  # fmt: skip
    if chosen:
        common.InlinePass(criteria=lambda function: function.identifier() in chosen)(model)


def batch_norms_left(model: ir.Model) -> Iterator[tuple[ir.Function, ir.Node]]:
    """Yield the BatchNormalizations that no graph shows, because their function could not be inlined."""
    for function in model.functions.values():
        for node in nodes_within(function):
            if is_op(node, BATCH_NORM):
                yield function, node


class _Calls:
    """The functions of a model, what each calls, and which of their parameters are constants in some call."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.reach = {name: self._reach(function) for name, function in model.functions.items()}
        self.barred = {name for name, reached in self.reach.items() if name in reached}  # calls itself
        self.constant: set[ir.Value] = set()
        known = -1
        while known < len(self.constant):
            known = len(self.constant)
            for node in all_nodes(model):
                self._call(node)

    def _reach(self, function: ir.Function) -> set[ir.OperatorIdentifier]:
        """The functions that one calls, directly or through others."""
        reached: set[ir.OperatorIdentifier] = set()
        work = [function]
        while work:
            called = {node.op_identifier() for node in nodes_within(work.pop())} & self.model.functions.keys() - reached
            reached |= called
            work += [self.model.functions[name] for name in called]
        return reached

    def _call(self, node: ir.Node) -> None:
        function = self.model.functions.get(node.op_identifier())
        if function is None:
            return
        graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        if any(attribute.type in graphs for attribute in node.attributes.values()):
            self.barred.add(function.identifier())  # the inliner passes no graphs
        pairs = zip(function.inputs, node.inputs, strict=False)
        self.constant |= {formal for formal, actual in pairs if self._is_constant(actual)}

    def _is_constant(self, value: ir.Value | None) -> bool:
        if value is None:
            return False
        producer = value.producer()
        stored = value.is_initializer() or (producer is not None and producer.op_type == "Constant")
        return stored or value in self.constant

    def harmonize(self, function: ir.Function) -> bool:
        """Give a function the model's opset if all of its operators mean the same there; say whether it can go."""
        if function.identifier() in self.barred or self.reach[function.identifier()] & self.barred:
            return False
        for domain, version in list(function.opset_imports.items()):
            ours = self.model.opset_imports.get(domain, version)
            if ours == version:
                continue
            if domain or not all(_same(node, version, ours) for node in nodes_within(function)):
                return False
            function.opset_imports[domain] = ours
        return True

    def holds_affine(self, function: ir.Function) -> bool:
        """Whether a node of the function, or of one that it calls, is an affine of its input."""
        return any(
            is_op(node, BATCH_NORM) or sum(self._is_constant(value) for value in node.inputs) == 1
            for node in self._within(function) if is_op(node, *SOURCES)
        )  # fmt: skip

    def has_law(self, function: ir.Function) -> bool:
        """Whether the algebra says something of a node of the function."""
        return any(rule_for(Op(node)) is not None for node in self._within(function))

    def _within(self, function: ir.Function) -> Iterator[ir.Node]:
        yield from nodes_within(function)
        for name in self.reach[function.identifier()]:
            yield from nodes_within(self.model.functions[name])


def _same(node: ir.Node, version: int, other: int) -> bool:
    if node.domain:
        return True
    try:
        since = [onnx.defs.get_schema(node.op_type, each, "").since_version for each in (version, other)]
    except onnx.defs.SchemaError:
        return False
    return since[0] == since[1]
