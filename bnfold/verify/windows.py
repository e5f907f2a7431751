"""Two models cut into windows: for each value that both compute, the nodes by which each gets it from shared values.

Fed with the same numbers, the two sides of a window must give the same numbers up to rounding, whatever the rest of
the models does: this is what makes an error attributable to a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.graph import annotate, dtype, label
from bnfold.verify.pairing import Pairing
from bnfold.verify.reference import captured, inlined, reads
from bnfold.verify.structure import attribute_differences


@dataclass(frozen=True)
class Piece:
    """One side of a window: `nodes` in order compute `result` from `feeds` and constants."""

    nodes: tuple[ir.Node, ...]
    feeds: tuple[ir.Value, ...]
    result: ir.Value

    @property
    def labels(self) -> list[str]:
        """The nodes' names as reports call them, constants left out."""
        return [label(node) for node in self.nodes if node.op_type != "Constant"]


@dataclass(frozen=True)
class Window:
    """A value that both models compute, called `name` in the original; `changed` if they do it by different means."""

    name: str
    original: Piece
    candidate: Piece
    changed: bool

    @property
    def label(self) -> str:
        """What users call the layer: the candidate's node that computes the value, or the value."""
        return next(reversed(self.candidate.labels), self.name)


class Windows:
    """The windows of two models, in the original's order; both are left as they are.

    `trusted` says that equal names mean equal values, `without` leaves names out, which makes wider windows.
    """

    def __init__(
        self, original: ir.Model, candidate: ir.Model, *, trusted: bool, without: Collection[str] = ()
    ) -> None:
        self.models = prepared(original), prepared(candidate)
        self.trusted, self.without = trusted, frozenset(without)
        self.outputs = [str(v.name) for v in self.models[0].graph.outputs]
        ours, theirs = (model.graph for model in self.models)
        self.pairing = Pairing(ours, theirs, trusted, self.without)
        self.listed = list(self._windows())
        self.by_name = {window.name: window for window in self.listed}

    @property
    def changed(self) -> list[Window]:
        """The windows whose two sides differ: the folds, and whatever else was done."""
        return [window for window in self.listed if window.changed]

    def wider(self, without: Collection[str]) -> Windows:
        """The windows where the named values are not taken for the same."""
        return Windows(*self.models, trusted=self.trusted, without=without)

    def _windows(self) -> Iterator[Window]:
        ours, theirs = (model.graph for model in self.models)
        order = [{node: n for n, node in enumerate(graph)} for graph in (ours, theirs)]
        twins = self.pairing.twins
        mates = {mine: other for other, mine in twins.items()}
        for node in ours:
            for value in node.outputs:
                if value in mates and mates[value].producer() is not None:
                    sides = _piece(value, mates, order[0]), _piece(mates[value], twins, order[1])
                    yield Window(str(value.name), *sides, not self._same(value, mates[value]))

    def _same(self, ours: ir.Value, theirs: ir.Value) -> bool:
        """Whether two values are computed by equal nodes all the way from shared values."""
        todo, pairing = [(ours, theirs)], self.pairing
        first = True
        while todo:
            a, b = todo.pop()
            if not first and pairing.same_value(a, b):
                continue
            first = False
            if {a, b} & pairing.constants:
                return False
            one, two = a.producer(), b.producer()
            if one is None or two is None or (b in pairing.twins and b is not theirs) or a.index() != b.index():
                return False
            if not _same_node(one, two):
                return False
            outside = captured(one), captured(two)
            if len(outside[0]) != len(outside[1]):
                return False
            for x, y in zip((*one.inputs, *outside[0]), (*two.inputs, *outside[1]), strict=True):
                if (x is None) != (y is None):
                    return False
                if x is not None and y is not None:
                    todo.append((x, y))
        return True


def _same_node(one: ir.Node, two: ir.Node) -> bool:
    alike = (one.domain, one.op_type, len(one.inputs)) == (two.domain, two.op_type, len(two.inputs))
    return alike and next(attribute_differences(one, two), None) is None


def prepared(model: ir.Model) -> ir.Model:
    """A copy without local functions and with inferred types beside its values; weights are shared."""
    copy = inlined(model) if model.functions else model.clone()
    annotate(copy)
    return copy


def _piece(value: ir.Value, shared: Container[ir.Value], order: dict[ir.Node, int]) -> Piece:
    """Walk back from a value to the shared values."""
    nodes: set[ir.Node] = set()
    feeds: dict[ir.Value, None] = {}
    todo = [value]
    while todo:
        here = todo.pop()
        producer = here.producer()
        if here is not value and (here in shared or producer is None):
            # What a body computes or is given itself is inside the node that holds it.
            if not here.is_initializer() and here.graph is value.graph:
                feeds[here] = None
            continue
        if producer in order and producer not in nodes:
            nodes.add(producer)
            todo += reads(producer)
    return Piece(tuple(sorted(nodes, key=order.__getitem__)), tuple(feeds), value)


def extracted(piece: Piece, like: ir.Model, names: dict[ir.Value, str], result: str, ranks: dict[str, int]) -> ir.Model:
    """A model of one side of a window; `names` are its feeds' names there, `ranks` by those names.

    Weights are shared with the model that the piece is of.
    """
    # What belongs to a body is inside the node that holds it.
    held = {v for node in piece.nodes for v in reads(node) if v.is_initializer() and v.graph is piece.result.graph}
    graph = ir.GraphView(
        list(piece.feeds), [piece.result], nodes=list(piece.nodes), name=result,
        initializers=[v for v in held if v not in piece.feeds], opset_imports=like.graph.opset_imports,
    ).clone()  # fmt: skip
    taken = {*names.values(), result}
    for node in graph:
        for value in node.outputs:
            if value.name in taken:
                value.name = f"{value.name}/inside"
    for value, feed in zip(graph.inputs, piece.feeds, strict=True):
        value.name = names[feed]
        value.const_value = None
        value.type = ir.TensorType(dtype(feed) or ir.DataType.FLOAT)
        value.shape = ir.Shape([f"{value.name}_{axis}" for axis in range(ranks[value.name])])
    output = graph.outputs[0]
    output.name, output.shape = result, None
    output.type = ir.TensorType(dtype(piece.result) or ir.DataType.FLOAT)
    return ir.Model(graph, ir_version=max(like.ir_version, 4), functions=())
