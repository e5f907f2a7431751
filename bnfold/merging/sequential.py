"""Sequential layers: a linear layer whose only reader is a linear layer is one linear layer.

    W₂⊛(s·(W₁⊛x + b₁) + t) + b₂  =  (W₂∘s·W₁)⊛x + (ΣW₂·(s·b₁ + t) + b₂)

Where zeros are padded on between them, s·b₁ + t must be zero.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bnfold.graph import label
from bnfold.graph.surgery import Names, take_over
from bnfold.merging.kernels import composed, composed_form
from bnfold.merging.layers import Layer, read
from bnfold.merging.report import BIASED, COSTS_MORE, READ_ELSEWHERE, Merge
from bnfold.merging.sizes import Sizes
from bnfold.merging.terms import Term, shared, term
from bnfold.merging.writing import preferred, range_fault, write


def sequential(node: ir.Node, names: Names, sizes: Sizes) -> list[Merge]:
    """Merge a layer with the one that it alone reads, or say why they stay apart."""
    outer = read(node.outputs[0]) if node.outputs else None
    x = None if outer is None else node.inputs[outer.slot]
    if outer is None or x is None:
        return []
    between = term(x, node.graph)
    inner = between if between.layer is not None else shared(between, node.graph)
    if inner is None or inner.layer is None:
        return []
    pair = priced(outer, inner, inner.layer, sizes)
    if pair is None or pair.reason is not None:
        return [] if pair is None else [pair]
    if inner is not between:
        return [replace(pair, reason=READ_ELSEWHERE)]
    first = inner.kernel(inner.layer)
    if outer.form.bordered and np.any(first.bias != 0.0):
        return [replace(pair, reason=BIASED)]
    kernel = composed(outer.kernel(), first)
    fault = range_fault(kernel, outer.dtype)
    if fault is not None:
        return [replace(pair, reason=fault)]
    value = node.outputs[0]
    nodes = write(preferred([outer, inner.layer]), inner.x, kernel, value, node, names)
    take_over(nodes[-1].outputs[0], value, names)
    return [replace(pair, into=label(nodes[0]))]


def priced(outer: Layer, inner: Term, layer: Layer, sizes: Sizes) -> Merge | None:
    """Return what two layers and the one layer cost, with the reason if there is none or it costs more."""
    form = inner.form(layer)
    if form is None or outer.axis != layer.axis:
        return None
    positions = sizes.positions(outer.node.outputs[0], outer.axis)
    within = sizes.positions(layer.node.outputs[0], layer.axis)
    apart = outer.form.cost(positions) + inner.cost(form, within)
    names = (*(label(each) for each in reversed(inner.nodes)), label(outer.node))
    after = composed_form(outer.form, form)
    if isinstance(after, str):
        return Merge("composition", names, None, apart, apart, outer.itemsize, after)
    cost = after.cost(positions)
    reason = COSTS_MORE if cost.total > apart.total else None
    return Merge("composition", names, None, apart, cost, outer.itemsize, reason)
