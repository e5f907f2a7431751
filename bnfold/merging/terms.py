"""Terms: what a sum adds, or a layer reads, as an affine of a linear layer of `x`, or of `x` itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from bnfold.affine import IDENTITY, Affine
from bnfold.arrays import Float64
from bnfold.graph import Op
from bnfold.merging.costs import Cost
from bnfold.merging.kernels import Form, Kernel, pointwise
from bnfold.merging.layers import Layer, copies, read
from bnfold.rules.sources import Source, source


@dataclass(frozen=True, eq=False)
class Term:
    """`value` is `affine` of a layer of `x`, or of `x`; `nodes` are those on the way that serve nothing else."""

    value: ir.Value
    affine: Affine
    layer: Layer | None
    x: ir.Value
    nodes: tuple[ir.Node, ...]
    steps: int = 0

    def negated(self) -> Term:
        return replace(self, affine=Affine.of(-1.0, 0.0) @ self.affine)

    def form(self, host: Layer) -> Form | None:
        """Return the term's form beside, or in front of, the host; None if it varies along other axes."""
        if self.layer is not None and self.layer.axis != host.axis:
            return None
        form = self.layer.form if self.layer is not None else _identity(host.form).form
        return None if _vectors(self.affine, host) is None else form

    def kernel(self, host: Layer) -> Kernel:
        """Read the term's weights; it must have a form."""
        kernel = self.layer.kernel() if self.layer is not None else _identity(host.form)
        vectors = _vectors(self.affine, host)
        assert vectors is not None
        return kernel if self.affine.is_identity else kernel.then(*vectors)

    def cost(self, form: Form, positions: float) -> Cost:
        """What the term costs: its layer, and a value read and written for each affine."""
        affines = len(self.nodes) - (self.layer is not None)
        passes = Cost(moved=2.0 * affines * form.outs * positions)
        return passes if self.layer is None else passes + form.cost(positions)


def term(value: ir.Value, graph: ir.Graph | ir.Function | None) -> Term:
    """Follow a value back over affines and identities to a layer or as far as it goes, inside one graph.

    Only what nothing else reads is followed: it can go.
    """
    found = Term(value, IDENTITY, None, value, ())
    while private(found.x) and (behind := _behind(found, graph)) is not None:
        found = behind
    layer, producer = read(found.x), found.x.producer()
    if layer is None or producer is None or producer.graph is not graph or not private(found.x):
        return found
    return replace(found, layer=layer, x=layer.x, nodes=(*found.nodes, producer))


def affine_of(x: ir.Value, value: ir.Value, graph: ir.Graph | ir.Function | None) -> Term | None:
    """Return the value as an affine of `x`, or None; what others read as well is followed too, and stays."""
    found: Term | None = Term(value, IDENTITY, None, value, ())
    while found is not None and found.x is not x:
        found = _behind(found, graph)
    return found


def _behind(found: Term, graph: ir.Graph | ir.Function | None) -> Term | None:
    """Follow a term over one more affine or copy, or return None."""
    node = found.x.producer()
    if node is None or node.graph is not graph:
        return None
    met = source(Op(node))
    if isinstance(met, Source):
        slot, affine = met.slot, found.affine @ met.affine
    elif copies(node):
        slot, affine = 0, found.affine
    else:
        return None
    base, goes = node.inputs[slot], private(found.x) and len(found.nodes) == found.steps
    assert base is not None
    nodes = (*found.nodes, node) if goes else found.nodes
    return replace(found, affine=affine, x=base, nodes=nodes, steps=found.steps + 1)


def shared(found: Term, graph: ir.Graph | ir.Function | None) -> Term | None:
    """Return the layer that stands behind a term and has other readers too, as a term."""
    layer, producer = read(found.x), found.x.producer()
    if found.layer is not None or layer is None or producer is None or producer.graph is not graph:
        return None
    return Term(found.x, IDENTITY, layer, layer.x, (producer,))


def private(value: ir.Value) -> bool:
    """Whether one node reads the value, and nothing outside sees it."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _identity(form: Form) -> Kernel:
    return pointwise(form, IDENTITY.scale, IDENTITY.shift)


def _vectors(affine: Affine, host: Layer) -> tuple[Float64, Float64] | None:
    """Return scale and shift as vectors along the host's channels, or None where they vary along other axes."""
    spatial = len(host.form.stride)
    rank = spatial + 2 if spatial else max(-host.axis, len(affine.shape))
    if affine.axes(rank) - {host.axis % rank}:
        return None
    return affine.scale.reshape(-1), affine.shift.reshape(-1)
