"""The pass that makes one layer of several: a sum of linear layers is linear, and so is a composition.

    precondition    a model as `fold` leaves it: affines that could be absorbed are gone, shapes are noted
    postcondition   the same function in exact arithmetic; every merge lowered the cost model's figure, or kept it
                    with fewer nodes

    parallel      Add, Sub and Sum of convolutions, products, average pools, affines of the input and the input itself
    sequential    a layer whose only reader is another linear layer
    exchange      a pointwise layer in front of an average, where behind it there is less to do

A merge that would cost more (`costs`) is refused with the two figures. Layers are priced by their form; weights are
read for a merge that pays.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from bnfold.graph.surgery import Names
from bnfold.merging.exchange import exchange
from bnfold.merging.parallel import parallel
from bnfold.merging.report import Merge
from bnfold.merging.sequential import sequential
from bnfold.merging.sizes import Sizes

LAWS = (parallel, exchange, sequential)


# What is not finite, or overflows, ends in a kernel that does not fit its type, and is refused as such.
@np.errstate(over="ignore", invalid="ignore")
def merge(model: ir.Model, dims: Mapping[str, int] | None = None) -> tuple[Merge, ...]:
    """Merge parallel and sequential linear branches in place, until nothing merges; then list what stays apart.

    `dims` sizes dynamic dimensions for the cost model, by symbolic name or "input:axis".
    """
    names, sizes = Names.of(model), Sizes(model, dims or {})
    done: list[Merge] = []
    while True:
        found = [
            result
            for graph in list(model.graphs())
            for node in list(graph)
            for law in LAWS
            if node.graph is graph
            for result in law(node, names, sizes)
        ]
        merged = [result for result in found if result.into is not None]
        if not merged:
            return (*done, *found)
        done += merged
