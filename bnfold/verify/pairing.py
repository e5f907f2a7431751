"""Which values of two models are the same value: the places where one may be held against the other.

bnfold never lets a name mean another value, so the names of its own results are trusted. A third party's are taken
only where the value is used alike in both models: a tool that folds a BatchNormalization may leave the name of the
convolution's output on what is now the BatchNormalization's. What no name pairs is paired by structure: the same
operator on paired inputs, and a linear layer whose weight is nearly that of a layer folded by the book.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from bnfold.graph import BATCH_NORM, dtype, is_op
from bnfold.verify.formulas import LINEAR, Folded, folded, layer, stored
from bnfold.verify.reference import captured, reads
from bnfold.verify.structure import attribute_differences, tensor_difference

# Consumers that a fold removes: a value that they read in one model only may have changed its meaning.
AFFINE = (BATCH_NORM, "Mul", "Add", "Sub", "Div", "Neg", "Sum")
# A folded weight is this close to the layer's, relative to its RMS, or it is another layer's.
FINGERPRINT = 1e-2


@dataclass
class Pairing:
    """The values of `original` and `candidate`, two main graphs, that are the same; `twins` maps candidate's to ours.

    `trusted` takes every name as it is; `without` are names of ours that are not to be paired.
    """

    original: ir.Graph
    candidate: ir.Graph
    trusted: bool
    without: Collection[str] = ()
    twins: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constants = _constants(self.original) | _constants(self.candidate)
        self._named = {str(v.name): v for node in self.original for v in node.outputs if v.name}
        self._readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
        for node in self.original:
            for value in dict.fromkeys(v for v in node.inputs if v is not None):
                self._readers[value].append(node)
        given = {str(v.name): v for v in self.original.inputs}
        for value in self.candidate.inputs:
            if value.name in given and value not in self.constants:
                self.twins[value] = given[str(value.name)]
        for node in self.candidate:
            self._pair(node)
        # The contract holds: whatever an output is called inside, it is the same output.
        for ours, theirs in zip(self.original.outputs, self.candidate.outputs, strict=True):
            if ours.producer() is not None and theirs.producer() is not None:
                self.twins[theirs] = ours
        self.twins = {theirs: ours for theirs, ours in self.twins.items() if ours not in self.constants}

    def _pair(self, node: ir.Node) -> None:
        """Pair the outputs of one node of the candidate, whose inputs have been seen."""
        fresh = []
        for value in node.outputs:
            ours = self._named.get(value.name or "")
            if value in self.constants or not value.name:
                continue
            if ours is not None and ours not in self.constants and (self.trusted or _used_alike(ours, value)):
                self._join(value, ours)
            else:
                fresh.append(value)
        if not fresh or self.trusted:
            return
        match = next((other for other in self._near(node) if self.same_node(other, node)), None)
        if match is not None:
            for ours, theirs in zip(match.outputs, node.outputs, strict=False):
                if theirs in fresh:
                    self._join(theirs, ours)
        elif node.op_type in LINEAR:
            found = self._fingerprint(node)
            if found is not None:
                self._join(node.outputs[0], found)

    def _join(self, theirs: ir.Value, ours: ir.Value) -> None:
        if ours.name not in self.without:
            self.twins[theirs] = ours

    def _near(self, node: ir.Node) -> Iterator[ir.Node]:
        """Yield the nodes of ours with the same operator that read the twin of one of its inputs."""
        for value in node.inputs:
            if value in self.twins:
                yield from (n for n in self._readers[self.twins[value]] if n.op_type == node.op_type)
                return

    def _fingerprint(self, node: ir.Node) -> ir.Value | None:
        """Find the layer of ours whose weight, folded or as it is, this node's weight nearly is."""
        new = layer(node)
        best: tuple[float, ir.Value | None] = (FINGERPRINT, None)
        if new is None:
            return None
        for other in self._near(node):
            for exact, value in _readings(other):
                if exact.shape == new.shape and exact.rows.size:
                    best = min(best, (exact.distance(new), value), key=lambda pair: pair[0])
        return best[1]

    def same_node(self, ours: ir.Node, theirs: ir.Node) -> bool:
        """Whether both nodes do the same with the same: operator, attributes, constants and paired inputs."""
        if (ours.domain, ours.op_type) != (theirs.domain, theirs.op_type):
            return False
        if next(attribute_differences(ours, theirs), None) is not None:
            return False
        mine, other = ([*_trimmed(node), *captured(node)] for node in (ours, theirs))
        return len(mine) == len(other) and all(map(self.same_value, mine, other))

    def same_bodies(self, ours: ir.Node, theirs: ir.Node) -> bool:
        """Whether the bodies of two nodes compute the same from the same, whatever the nodes are given."""
        if ours.op_type != theirs.op_type or next(attribute_differences(ours, theirs), None) is not None:
            return False
        mine, other = captured(ours), captured(theirs)
        return len(mine) == len(other) and all(map(self.same_value, mine, other))

    def same_value(self, ours: ir.Value | None, theirs: ir.Value | None) -> bool:
        """Whether two inputs are paired, or equal constants bit for bit."""
        if ours is None or theirs is None:
            return ours is theirs
        if theirs in self.twins:
            return self.twins[theirs] is ours
        if (ours in self.constants) != (theirs in self.constants):
            return False
        a, b = stored(ours), stored(theirs)
        return a is not None and b is not None and tensor_difference(a, b) is None


def _readings(node: ir.Node) -> Iterator[tuple[Folded, ir.Value]]:
    """Yield the constants that a third party may have made of a layer, with the value that it then computes."""
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) == 1 and is_op(users[0], BATCH_NORM):
        exact = folded(node, users[0])
        if exact is not None:
            yield exact, users[0].outputs[0]
    alone = layer(node)
    if alone is not None:
        yield alone, node.outputs[0]


def _trimmed(node: ir.Node) -> list[ir.Value | None]:
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _used_alike(ours: ir.Value, theirs: ir.Value) -> bool:
    """Whether no affine reads the value in one model only, so that the name can't have moved across it."""
    one, two = dtype(ours), dtype(theirs)
    if one is not None and two is not None and one != two:
        return False
    mine, other = (Counter(u.node.op_type for u in v.uses() if u.node.op_type in AFFINE) for v in (ours, theirs))
    return mine == other and ours.is_graph_output() == theirs.is_graph_output()


def _constants(graph: ir.Graph) -> set[ir.Value]:
    """The values that follow from initializers alone; a shape does not, it is the input's."""
    found = set(graph.initializers.values())
    for node in graph:
        if all(v in found for v in reads(node) if v.graph is graph or v.graph is None):
            found.update(node.outputs)
    return found
