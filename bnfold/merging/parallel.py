"""Parallel branches: a sum of linear layers, affines and copies of one value is one linear layer.

    s·(W₁⊛x + b₁) + t ± (W₂⊛x + b₂) ± x  =  (s·W₁ ± W₂ ± 1)⊛x + (s·b₁ + t ± b₂)

Additions nest in any tree, for their order changes nothing; what reads another value stays added to the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from bnfold.graph import is_op, label, note, shape
from bnfold.graph.surgery import Names, take_over
from bnfold.merging.costs import Cost
from bnfold.merging.kernels import Form, Kernel, total, total_form
from bnfold.merging.layers import Layer
from bnfold.merging.report import COSTS_MORE, READ_ELSEWHERE, Merge
from bnfold.merging.sizes import Sizes
from bnfold.merging.terms import Term, affine_of, private, shared, term
from bnfold.merging.writing import preferred, range_fault, write

SUMS = ("Add", "Sub", "Sum")


@dataclass(frozen=True)
class Group:
    """Terms of the same value that become one layer, on the axes of `host`; `before` is what they cost apart."""

    host: Layer
    positions: float
    terms: tuple[Term, ...]
    form: Form
    before: Cost

    @staticmethod
    def alone(found: Term, layer: Layer, form: Form, sizes: Sizes) -> Group:
        """Return the group of one layer."""
        positions = sizes.positions(layer.node.outputs[0], layer.axis)
        return Group(layer, positions, (found,), form, found.cost(form, positions))

    @property
    def after(self) -> Cost:
        """What they cost as one layer."""
        return self.form.cost(self.positions)

    def joined(self, other: Term) -> Group | Merge | None:
        """Return the group with one more term, the refusal of it, or None where the term is none of this kind."""
        form = other.form(self.host)
        if form is None:
            return None
        together = total_form([self.form, form])
        # Its addition reads two values and writes one.
        more = other.cost(form, self.positions) + Cost(moved=3.0 * form.outs * self.positions)
        apart = self.after + more  # every term has to pay by itself
        if isinstance(together, str):
            return self.refused(together, other, apart=apart, after=apart)
        larger = replace(self, terms=(*self.terms, other), form=together, before=self.before + more)
        if larger.after.total > apart.total:
            return self.refused(COSTS_MORE, other, apart=apart, after=larger.after)
        return larger

    def refused(self, reason: str, *more: Term, apart: Cost | None = None, after: Cost | None = None) -> Merge:
        """Say why the terms, and `more`, do not become one layer; the costs are the group's unless they are given."""
        before = apart or self.before
        return Merge("sum", self.names(*more), None, before, after or self.after, self.host.itemsize, reason)

    def names(self, *more: Term) -> tuple[str, ...]:
        return tuple(label(node) for found in (*self.terms, *more) for node in found.nodes)


def parallel(root: ir.Node, names: Names, sizes: Sizes) -> list[Merge]:
    """Merge the summands of a tree of additions that read the same value, or say why they stay apart."""
    if not _is_sum(root) or _inside_a_sum(root):
        return []
    summands = [(term(value, root.graph), sign) for value, sign in _summands(root)]
    refused: list[Merge] = []
    for x in dict.fromkeys(found.x for found, _ in summands if found.layer is not None):
        read_x = [_term_of(x, found, sign, root) for found, sign in summands]
        for group in _groups([found for found in read_x if found is not None], sizes, refused):
            kernel = total([found.kernel(group.host) for found in group.terms])
            fault = range_fault(kernel, group.host.dtype)
            if fault is None:
                taken = [found in group.terms for found in read_x]
                rest = [(found.value, sign) for (found, sign), gone in zip(summands, taken, strict=True) if not gone]
                return [_join(root, group, kernel, rest, names)]
            refused.append(group.refused(fault))
    return [*refused, *_read_elsewhere(root, [found for found, _ in summands], sizes)]


def _term_of(x: ir.Value, found: Term, sign: int, root: ir.Node) -> Term | None:
    """Return a summand as a term of `x`, its sign included, or None."""
    same: Term | None = found
    if found.x is not x:
        same = None if found.layer is not None else affine_of(x, found.value, root.graph)
    return same if same is None or sign > 0 else same.negated()


def _is_sum(node: ir.Node) -> bool:
    # Before opset 7 an attribute could align the operands; such an addition is left as it is.
    plain = not {"axis", "broadcast"} & set(node.attributes)
    return is_op(node, *SUMS) and plain


def _inside_a_sum(root: ir.Node) -> bool:
    """Whether another addition takes this one in as a part of its tree."""
    value = root.outputs[0]
    user = next((use.node for use in value.uses()), None)
    return user is not None and private(value) and user.graph is root.graph and _is_sum(user)


def _summands(root: ir.Node) -> list[tuple[ir.Value, int]]:
    """Return the signed summands of a tree of additions, from left to right."""
    found: list[tuple[ir.Value, int]] = []
    work = [(root.outputs[0], 1)]
    while work:
        value, sign = work.pop()
        node = value.producer()
        inside = node is root or (node is not None and node.graph is root.graph and private(value))
        if node is None or not inside or not _is_sum(node):
            found.append((value, sign))
            continue
        signs = (sign, -sign) if node.op_type == "Sub" else (sign,) * len(node.inputs)
        work += reversed([(part, s) for part, s in zip(node.inputs, signs, strict=True) if part is not None])
    return found


def _groups(terms: list[Term], sizes: Sizes, refused: list[Merge]) -> list[Group]:
    """Group what becomes cheaper as one layer, around the largest layer first."""
    ordered = sorted(terms, key=lambda found: 0 if found.layer is None else -found.layer.form.weights)
    groups = []
    for index, anchor in enumerate(ordered[:-1]):
        form = None if anchor.layer is None else anchor.form(anchor.layer)
        if anchor.layer is None or form is None:
            continue
        group = Group.alone(anchor, anchor.layer, form, sizes)
        for other in ordered[index + 1 :]:
            larger = group.joined(other)
            if isinstance(larger, Group):
                group = larger
            elif larger is not None:
                refused.append(larger)
        if len(group.terms) > 1:
            groups.append(group)
    return groups


def _read_elsewhere(root: ir.Node, terms: list[Term], sizes: Sizes) -> list[Merge]:
    """Report the layers that would merge if nothing else read them."""
    found = []
    for one in (hidden for each in terms if (hidden := shared(each, root.graph)) is not None):
        partner = next((other for other in terms if other.layer is not None and other.x is one.x), None)
        if one.layer is None or partner is None or partner.layer is None:
            continue
        group = Group.alone(partner, partner.layer, partner.layer.form, sizes).joined(one)
        if isinstance(group, Group):
            found.append(group.refused(READ_ELSEWHERE))
    return found


def _join(root: ir.Node, group: Group, kernel: Kernel, rest: list[tuple[ir.Value, int]], names: Names) -> Merge:
    """Put the merged layer where the sum was, with the summands that stay added to it."""
    merged = group.names()
    host = preferred([found.layer for found in group.terms if found.layer is not None])
    nodes = write(host, group.terms[0].x, kernel, group.terms[0].value, root, names)
    into, value = label(nodes[0]), nodes[-1].outputs[0]
    graph = root.graph
    assert isinstance(graph, ir.Graph)
    for other, sign in rest:
        node = ir.Node("", "Add" if sign > 0 else "Sub", [value, other], name=names.fresh(f"{label(root)}_rest"))
        node.outputs[0].name = names.fresh(f"{label(root)}_partial")
        node.outputs[0].type = root.outputs[0].type
        if _same_shape(value, other):
            note(node.outputs[0], value)
        graph.insert_before(root, node)
        value = node.outputs[0]
    take_over(value, root.outputs[0], names)
    return Merge("sum", merged, into, group.before, group.after, group.host.itemsize)


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    known = shape(a)
    return known is not None and None not in known and known == shape(b)
