"""The pass: plan, choose the better direction, commit; again until no plan lowers the cost.

    precondition    a checked model; statistics and constants as initializers or constant nodes
    postcondition   the same function in exact arithmetic, fewer elementwise passes; every BatchNormalization has a
                    route or a reason; the model's metadata holds the fold map

Every commit strictly lowers the cost, so the pass ends. It is greedy: sources are taken in graph order and each
takes its own best plan, together with others where it could not go alone, which need not be the best for all of them;
BatchNormalizations come first, because their routes are what a user asks about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from bnfold.folding.commit import Committed, commit
from bnfold.folding.frozen import remembered
from bnfold.folding.functions import batch_norms_left, inline
from bnfold.folding.joint import plan_jointly
from bnfold.folding.numbering import Numbering
from bnfold.folding.plan import better, plan_hoist, plan_sink
from bnfold.folding.report import Entry, FoldReport, record
from bnfold.folding.walk import Plan
from bnfold.graph import BATCH_NORM, Op, annotate, bodies, is_op, label, node_count, shape
from bnfold.graph.surgery import Names, drop_unread
from bnfold.rules.base import Reason, Refusal
from bnfold.rules.sources import SOURCES, Source, source


def fold(model: ir.Model, *, freeze_initializers: bool = False) -> FoldReport:
    """Absorb every affine that a neighbour can take, in place, and report on every BatchNormalization.

    `freeze_initializers` first removes initializers from the graph's inputs, so that they are constants.
    """
    frozen = _freeze(model) if freeze_initializers else 0
    inline(model)
    before = node_count(model)
    with remembered(model):
        folding = _Folding(model)
        folding.run()
        drop_unread(folding.dropped_inputs)
    after = node_count(model)
    entries = tuple(folding.entry(node) for node in folding.batch_norms) + tuple(
        Entry(label(node), BATCH_NORM, None, "kept", reason=Reason.FUNCTION, blocking=node.outputs[0].name,
              detail=f"in function {function.domain}::{function.name}")
        for function, node in batch_norms_left(model)
    )  # fmt: skip
    record(model, folding.log)
    return FoldReport(entries, folding.affines, frozen, before, after)


class _Folding:
    """The state of one run: sources still to plan, which regions they looked at, what was committed."""

    def __init__(self, model: ir.Model) -> None:
        annotate(model)
        self.model = model
        self.names = Names.of(model)
        self.order = Numbering(_walk(model.graph))
        self.queue: dict[ir.Node, None] = {}
        self.batch_norms = [node for node in self.order.nodes() if is_op(node, BATCH_NORM)]
        affines = [node for node in self.order.nodes() if is_op(node, *SOURCES - {BATCH_NORM})]
        self.queue.update(dict.fromkeys(self.batch_norms + affines))
        self.channels = {node: _channels(node) for node in self.batch_norms}
        self.labels = {node: label(node) for node in self.batch_norms}
        self.watchers: dict[ir.Node, set[ir.Node]] = defaultdict(set)
        self.folded: dict[ir.Node, Plan] = {}
        self.refused: dict[ir.Node, Refusal] = {}
        self.routes: dict[ir.Node, tuple[str, ...]] = {}
        self.log: list[dict[str, Any]] = []
        self.dropped_inputs: list[ir.Value] = []
        self.affines = 0
        self.remainders = False

    def run(self) -> None:
        self._drain()
        # The constants of what was left to compute may tell a size that nothing told before.
        while self.remainders and Reason.UNKNOWN_SHAPE in {kept.reason for kept in self.refused.values()}:
            self.remainders = False
            annotate(self.model)
            self.queue.update(dict.fromkeys(self.refused))
            self._drain()

    def _drain(self) -> None:
        while self.queue:
            node = next(iter(self.queue))
            del self.queue[node]
            if node.graph is None:
                continue
            found = source(Op(node))
            if isinstance(found, Source):
                self._plan(node, found)
            elif isinstance(found, Refusal):
                self.refused[node] = found

    def _plan(self, node: ir.Node, found: Source) -> None:
        hoisted = plan_hoist({node: found}, self.order)
        if isinstance(hoisted.result, Plan) and not hoisted.result.emitted:
            self._commit(hoisted.result)  # nothing is left to compute, so sinking could only tie
            return
        sunk = plan_sink({node: found}, self.order)
        best, visited = better(hoisted.result, sunk.result), hoisted.visited | sunk.visited
        if not isinstance(best, Plan) or best.emitted:
            joint = plan_jointly(node, found, hoisted, sunk, self.order)
            best, visited = better(best, joint.result), joint.visited
        if isinstance(best, Plan):
            self._commit(best)
            return
        refusals = [answer.result for answer in (hoisted, sunk) if isinstance(answer.result, Refusal)]
        self.refused[node] = _telling(refusals)
        for seen in visited:
            self.watchers[seen].add(node)

    def _commit(self, plan: Plan) -> None:
        self.dropped_inputs += [value for node, _ in plan.removed for value in node.inputs if value is not None]
        self.dropped_inputs += [
            value for edit in plan.edits if isinstance(edit.slot, int) and edit.slot < len(edit.node.inputs)
            if (value := edit.node.inputs[edit.slot]) is not None
        ]  # fmt: skip
        route, removed = tuple(label(node) for node in plan.route), [label(node) for node, _ in plan.removed]
        done = commit(plan, self.names, self.order)
        for node, _ in plan.removed:
            self.folded[node] = plan
            self.routes[node] = route
            self.affines += node.op_type != BATCH_NORM
        self.log.append(_logged(plan, removed, route, done))
        for node in done.emitted:
            self.queue[node] = None
            self.remainders = True
        for touched in sorted(done.touched, key=self.order.key):
            for watcher in sorted(self.watchers.pop(touched, ()), key=self.order.key):
                if watcher not in self.folded:
                    self.queue[watcher] = None

    def entry(self, node: ir.Node) -> Entry:
        """Report on one BatchNormalization."""
        name, channels = self.labels[node], self.channels[node]
        plan = self.folded.get(node)
        if plan is not None:
            absorbers = tuple(dict.fromkeys(label(n) for n in plan.absorbers))
            return Entry(name, node.op_type, channels, "folded", plan.judgement, self.routes[node], absorbers)
        refusal = self.refused[node]
        return Entry(
            name, node.op_type, channels, "kept",
            reason=refusal.reason, blocking=refusal.value or None, detail=refusal.detail or None,
        )  # fmt: skip


def _walk(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield nodes in order, each body before the node that holds it."""
    for node in graph:
        for body in bodies(node):
            yield from _walk(body)
        yield node


def _channels(node: ir.Node) -> int | None:
    known = shape(Op(node).input(1)) or (None,)
    return known[0] if isinstance(known[0], int) else None


# What says least about the model comes last: a missing gain or the border of the graph is no cause in itself.
_TELLING = (Reason.NO_GAIN, Reason.GRAPH_OUTPUT, Reason.GRAPH_INPUT, Reason.BARRIER)


def _telling(refusals: list[Refusal]) -> Refusal:
    """Choose between the refusals of both directions the one that tells the user more."""
    return max(refusals, key=lambda r: _TELLING.index(r.reason) if r.reason in _TELLING else len(_TELLING))


def _logged(plan: Plan, removed: list[str], route: tuple[str, ...], done: Committed) -> dict[str, Any]:
    return {
        "judgement": plan.judgement,
        "removed": removed,
        "route": list(route),
        "edits": [
            {"node": c.node, "slot": c.slot, "old": c.old, "new": c.new, "formula": c.formula} for c in done.changes
        ],
        "emitted": [node.name for node in done.emitted],
    }


def _freeze(model: ir.Model) -> int:
    before = len(model.graph.inputs)
    common.RemoveInitializersFromInputsPass()(model)
    return before - len(model.graph.inputs)
