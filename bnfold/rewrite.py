"""The rewrite of a model, without reading, writing or proving: clean, fold, merge, fold again, clean.

It is deterministic, so that a verification can replay it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from bnfold.folding.fold import fold
from bnfold.folding.frozen import remembered
from bnfold.folding.report import FoldReport, record
from bnfold.graph import bodies, nodes_within
from bnfold.merging.merge import merge as merge_branches
from bnfold.merging.report import Merge


def rewrite(
    model: ir.Model,
    *,
    freeze_initializers: bool = False,
    merge: bool = True,
    dims: Mapping[str, int] | None = None,
) -> FoldReport:
    """Absorb every affine that a neighbour can take and merge linear branches where it pays, in place.

    `freeze_initializers` takes initializers that are also graph inputs as constants. `dims` sizes dynamic dimensions,
    by symbolic name or "input:axis", where it depends on them whether a merge pays.
    """
    clean(model)  # what nothing uses must not count as a reader
    report = fold(model, freeze_initializers=freeze_initializers)
    while merge:
        with remembered(model):
            merges = merge_branches(model, dims)
        log = [_logged(each, dims) for each in merges if each.into is not None]
        record(model, log)
        # A merge uncovers what a sum stood in front of, and folding that, another merge.
        report = report.followed_by(merges, fold(model) if log else None)
        merge = bool(log)
    clean(model)
    return report


def _logged(merge: Merge, dims: Mapping[str, int] | None) -> dict[str, Any]:
    """The fold map's entry; a verification that replays the rewrite needs the sizes that it weighed by."""
    entry: dict[str, Any] = {
        "judgement": "merge", "law": merge.law, "removed": list(merge.nodes), "into": merge.into,
    }  # fmt: skip
    return entry | ({"dims": dict(dims)} if dims else {})


def clean(model: ir.Model) -> None:
    """Drop the nodes, initializers, functions and opset imports that nothing uses, in place."""
    holders = list(_holders(model.graph))
    common.RemoveUnusedNodesPass()(model)
    while dead := [node for node in holders if node.graph is None]:
        # What the body of a removed node read has lost that reader too.
        for inner in (node for holder in dead for body in bodies(holder) for node in nodes_within(body)):
            for slot in range(len(inner.inputs)):
                inner.replace_input_with(slot, None)
        holders = [node for node in holders if node.graph is not None]
        common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)


def _holders(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        for body in bodies(node):
            yield node
            yield from _holders(body)
