"""What a walk over a graph collects, and the plan it ends as."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from bnfold.affine import Affine
from bnfold.derived import Derived, rounded
from bnfold.folding.numbering import Key, Numbering
from bnfold.graph import BATCH_NORM, Op, dtype, is_op, shape
from bnfold.rules.base import Edit, Reason, Refusal
from bnfold.rules.sources import Source

Use = tuple[ir.Node, int]


@dataclass(frozen=True)
class Emission:
    """An affine left to be computed on `value`, for the uses listed and for the graph output if `output`.

    `whole` says that its result is what the value was before, and not only a part of the way there.
    """

    value: ir.Value
    affine: Affine
    uses: tuple[Use, ...]
    output: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Plan:
    """What absorbing one source changes: sources bypassed, constants edited, affines left to compute.

    `route` lists the nodes that the affine passed or met, `rescaled` the values that come to mean something else,
    `together` the other sources that could only be absorbed with this one.
    """

    source: ir.Node
    judgement: Literal["hoist", "sink"]
    affine: Affine
    removed: tuple[tuple[ir.Node, int], ...]
    edits: tuple[Edit, ...]
    emitted: tuple[Emission, ...]
    route: tuple[ir.Node, ...]
    absorbers: tuple[ir.Node, ...]
    rescaled: tuple[ir.Value, ...]
    gain: int
    together: tuple[ir.Node, ...] = ()

    @property
    def nodes_removed(self) -> int:
        """How many nodes fewer the graph has after the plan."""
        return len(self.removed) - sum(emission.affine.cost for emission in self.emitted)


@dataclass
class Walk:
    """What a walk collects."""

    judgement: Literal["hoist", "sink"]
    starts: Mapping[ir.Node, Source]
    order: Numbering
    pending: dict[ir.Node, list[tuple[ir.Value, Use, Affine]]] = field(default_factory=dict)
    heap: list[tuple[Key, int, ir.Node]] = field(default_factory=list)
    removed: dict[ir.Node, int] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    emitted: list[Emission] = field(default_factory=list)
    emitted_on: dict[ir.Value, list[int]] = field(default_factory=dict)
    route: list[ir.Node] = field(default_factory=list)
    absorbers: list[ir.Node] = field(default_factory=list)
    rescaled: dict[ir.Value, None] = field(default_factory=dict)
    blocks: list[Refusal] = field(default_factory=list)
    forks: dict[ir.Node, int] = field(default_factory=dict)
    seen: set[ir.Node] = field(default_factory=set)
    silent: list[Op | None] = field(default_factory=list)
    spent: int = 0

    @property
    def start(self) -> ir.Node:
        """The source that is planned; others go with it."""
        return next(iter(self.starts))

    @property
    def visited(self) -> frozenset[ir.Node]:
        """The region whose change makes a new plan worth while."""
        return frozenset(self.pending) | frozenset(self.starts) | self.seen

    def push(self, node: ir.Node, value: ir.Value, use: Use, affine: Affine) -> None:
        if node not in self.pending:
            self.pending[node] = []
            key = self.order.key(node)
            # Reversed, a node behind another comes before it: (5, 1) goes ahead of (5,).
            rank = (*(-part for part in key), 1) if self.judgement == "hoist" else key
            heapq.heappush(self.heap, (rank, len(self.pending), node))
        self.pending[node].append((value, use, affine))

    def pop(self) -> tuple[ir.Node, list[tuple[ir.Value, Use, Affine]]]:
        node = heapq.heappop(self.heap)[2]
        return node, self.pending[node]

    def remove(self, node: ir.Node, found: Source) -> None:
        self.removed[node] = found.slot
        self.spent -= found.cost

    def emit(
        self, value: ir.Value, affine: Affine, uses: list[Use], *, output: bool = False, whole: bool = False
    ) -> None:
        """Leave `affine` to be computed on `value`; readers that want the same share one computation."""
        affine = _stored(affine, dtype(value))
        if affine.is_identity:
            return
        same = self.emitted_on.setdefault(value, [])
        for index in same:
            other = self.emitted[index]
            if other.affine == affine:
                self.emitted[index] = replace(other, uses=(*other.uses, *uses))
                return
        self.spent += affine.cost * (2 if self._in_feature_maps(value, uses) else 1)
        same.append(len(self.emitted))
        self.emitted.append(Emission(value, affine, tuple(uses), output, whole))

    def _in_feature_maps(self, value: ir.Value, uses: list[Use]) -> bool:
        """Whether what is left of a BatchNormalization would stand in front of a convolution over an image.

        ONNX Runtime keeps images between convolutions in blocks of channels. A BatchNormalization is computed in them;
        an addition or a product by a constant takes the blocks apart and costs more than it saves.
        """
        if not is_op(self.start, BATCH_NORM) or len(shape(value) or ()) != 4:
            return False
        readers = [user for user, _ in uses if user not in self.removed]
        readers += [user for node in self.removed for user, _ in node.outputs[0].uses()]
        return any(Op(user).type == "Conv" for user in readers)

    def emit_each(self, asked: list[tuple[ir.Value, Use, Affine]], block: Refusal) -> None:
        """Leave every affine of a blocked branch to be computed where it stopped, equal ones once."""
        self.blocks.append(block)
        groups: list[tuple[ir.Value, Affine, list[Use]]] = []
        for value, use, affine in asked:
            for other, wanted, uses in groups:
                if other is value and wanted == affine:
                    uses.append(use)
                    break
            else:
                groups.append((value, affine, [use]))
        for value, affine, uses in groups:
            self.emit(value, affine, uses, whole=self.judgement == "sink")

    def stops(self) -> frozenset[ir.Node]:
        """Return the joins all of whose operands were left to compute: behind them it is one computation."""
        left = {use for emission in self.emitted for use in emission.uses}
        passed: dict[ir.Node, set[Use]] = defaultdict(set)
        for use in left | {use for asked in self.pending.values() for _, use, _ in asked}:
            passed[use[0]].add(use)
        joins = set()
        for node in reversed(self.route):
            if passed[node] and passed[node] <= left:
                left.update(use for _, use, _ in self.pending[node])
                if len(passed[node]) > 1:
                    joins.add(node)
        return frozenset(joins)

    def chained(self, node: ir.Node) -> Walk:
        """Give up: one of the sources that were to go together stands on the way of another."""
        self.spent = 0
        self.blocks.append(Refusal(Reason.NO_GAIN).on(node.outputs[0]))
        return self

    def finish(self) -> Plan | Refusal:
        if self.spent >= 0:
            return self.blocks[0] if self.blocks else Refusal(Reason.NO_GAIN)
        fault = _range_fault(self)
        if fault:
            return fault
        if self.emitted and Op(self.start).opset < 7:
            return Refusal(Reason.BARRIER, detail="the rest can't be computed: arithmetic broadcasts from opset 7")
        return Plan(
            self.start, self.judgement, self.starts[self.start].affine, tuple(self.removed.items()), tuple(self.edits),
            tuple(self.emitted), tuple(self.route), tuple(self.absorbers), tuple(self.rescaled), -self.spent,
            tuple(self.starts)[1:],
        )  # fmt: skip


def _stored(affine: Affine, kind: ir.DataType | None) -> Affine:
    """Return the affine without a scale that is one in its type, such as c·(1/c)."""
    return affine.shifting if kind is not None and np.all(rounded(affine.scale, kind) == 1) else affine


def _range_fault(walk: Walk) -> Refusal | None:
    """Refuse constants that would not fit their type or attribute, and work moved to where there are more elements."""
    for edit in walk.edits:
        wide = dtype(edit.node.outputs[0]) is ir.DataType.DOUBLE
        if isinstance(edit.value, float) and wide and float(np.float32(edit.value)) != edit.value:
            detail = f"the attribute {edit.slot} holds {edit.value:.9g} as a float32 only"
            return Refusal(Reason.RANGE, detail=detail).on(edit.node.outputs[0])
        if isinstance(edit.value, Derived) and (fault := edit.value.range_fault()):
            assert isinstance(edit.slot, int)
            return Refusal(Reason.RANGE, detail=fault).on(Op(edit.node).input(edit.slot)).on(edit.node.outputs[0])
    limit = max(_elements(node.outputs[0]) for node in (*walk.removed, *walk.absorbers))
    for emission in walk.emitted:
        kind = dtype(emission.value)
        if kind is None:
            return Refusal(Reason.NOT_FLOATING, detail="its type is not known").on(emission.value)
        for coefficients in (emission.affine.scale, emission.affine.shift):
            if fault := Derived(coefficients, kind).range_fault():
                return Refusal(Reason.RANGE, detail=fault).on(emission.value)
        if _elements(emission.value) > limit:
            return Refusal(Reason.NO_GAIN, detail="what remains would be computed on a larger value").on(emission.value)
    return None


def _elements(value: ir.Value) -> int:
    """The number of elements per unknown dimension; an unknown rank counts as nothing."""
    known = shape(value)
    return 0 if known is None else math.prod(dim for dim in known if isinstance(dim, int))
