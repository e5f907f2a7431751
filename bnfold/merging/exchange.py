"""Exchange: a pointwise layer in front of an average is that layer behind it, where there are fewer positions.

    P(W·x + b)  =  W·P(x) + b        W mixes channels, P positions; where P averages zeros in, b must be zero

As one layer the two would be a convolution with the window of P, which does for every tap what here is done once.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bnfold.affine import Affine, along
from bnfold.graph import Op, label, note, shape
from bnfold.graph.surgery import Names, take_over
from bnfold.merging.costs import Cost
from bnfold.merging.layers import Layer, gives_nothing, read
from bnfold.merging.report import BIASED, Merge
from bnfold.merging.sequential import priced
from bnfold.merging.sizes import Sizes
from bnfold.merging.terms import Term, term
from bnfold.merging.writing import range_fault, write
from bnfold.rules import rule_for
from bnfold.rules.base import Step


def exchange(node: ir.Node, names: Names, sizes: Sizes) -> list[Merge]:
    """Move a pointwise convolution behind the average that alone reads it, where that is cheaper than all else."""
    found = _averaged(node)
    if found is None or found.layer is None:
        return []
    value, host = node.outputs[0], found.layer
    outer, swap = read(value), _swap(node, found, host, sizes)
    whole = None if outer is None else priced(outer, found, host, sizes)
    if swap.after.total >= swap.before.total or (whole is not None and swap.after.total >= whole.after.total):
        return []
    kernel = found.kernel(host)
    biased = np.any(kernel.bias != 0.0) and not _passes(node, Affine.of(1.0, along(kernel.bias, 1, _rank(host))))
    fault = BIASED if biased else range_fault(kernel, host.dtype)
    if fault is not None:
        return [replace(swap, reason=fault)]
    average = ir.Node("", node.op_type, [found.x, *node.inputs[1:]], node.attributes.values())
    average.name, average.outputs[0].name = names.fresh(label(node)), names.fresh(f"{label(node)}_output")
    note(average.outputs[0], value, {1: host.form.ins})
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_before(node, average)
    nodes = write(host, average.outputs[0], kernel, value, node, names)
    take_over(nodes[-1].outputs[0], value, names)
    return [replace(swap, into=label(nodes[0]))]


def _averaged(node: ir.Node) -> Term | None:
    """Return the pointwise convolution that an average alone reads, if averages and channels do not mix."""
    rule = rule_for(Op(node))
    if rule is None or rule.family != "averages" or node.inputs[0] is None:
        return None
    found = term(node.inputs[0], node.graph)
    if found.layer is None or not (found.layer.node.op_type == "Conv" and found.layer.form.pointwise):
        return None
    form, after = found.form(found.layer), shape(node.outputs[0])
    if form is None or after is None or len(after) != _rank(found.layer) or gives_nothing(Op(node)):
        return None
    channels = np.arange(1.0, form.outs + 1.0)
    return found if _passes(node, Affine.of(along(channels, 1, _rank(found.layer)), 0.0)) else None


def _passes(node: ir.Node, affine: Affine) -> bool:
    """Whether an affine in front of the average is the same affine behind it."""
    rule = rule_for(Op(node))
    step = None if rule is None or rule.sink is None else rule.sink(Op(node), {0: affine})
    return isinstance(step, Step) and step.passed == {0: affine}


def _rank(layer: Layer) -> int:
    return len(layer.form.stride) + 2


def _swap(node: ir.Node, found: Term, host: Layer, sizes: Sizes) -> Merge:
    """Return what the two cost in either order."""
    form, value = host.form, node.outputs[0]
    within, positions = sizes.positions(host.node.outputs[0], 1), sizes.positions(value, 1)
    window = math.prod(Op(node).attr("kernel_shape") or ()) if node.op_type == "AveragePool" else within / positions

    def average(channels: int) -> Cost:
        return Cost(0.0, channels * positions * window, channels * (within + positions))

    before = found.cost(form, within) + average(form.outs)
    after = average(form.ins) + form.cost(positions)
    nodes = (*(label(each) for each in reversed(found.nodes)), label(node))
    return Merge("exchange", nodes, None, before, after, host.itemsize)
