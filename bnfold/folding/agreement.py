"""Whether the readers of a value agree on what it is to become."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnfold.affine import Affine
from bnfold.folding.walk import Use
from bnfold.graph import Op, shape
from bnfold.rules.base import Reason, Refusal
from bnfold.rules.selections import part_read

Asked = tuple[ir.Value, Use, Affine]


def disagreement(value: ir.Value, mine: list[Asked], others: list[Use]) -> Refusal | None:
    """Say why a value can't become what `mine` ask, where `others` read it too and ask for nothing."""
    if others or value.is_graph_output():
        reason = Reason.GRAPH_OUTPUT if value.is_graph_output() else Reason.READERS
        if any(node.graph is not value.graph for node, _ in others):
            reason = Reason.BODY
        readers = ", ".join(sorted({f"{node.op_type} {node.name}" for node, _ in others})[:3])
        return Refusal(reason, detail=f"also read by {readers}" if readers else "").on(value)
    if any(affine != mine[0][2] for _, _, affine in mine[1:]):
        return Refusal(Reason.READERS, detail="its readers ask for different affines").on(value)
    return None


def in_parts(asked: list[Asked]) -> Affine | None:
    """Join demands of readers that each read a part of one value; None where two of them meet and differ."""
    value = asked[0][0]
    known = shape(value)
    if known is None:
        return None
    scale, shift, taken = np.ones([1] * len(known)), np.zeros([1] * len(known)), np.zeros([1] * len(known), dtype=bool)
    for _, (node, slot), affine in asked:
        read = part_read(Op(node)) if slot == 0 else None
        mask = np.ones((), dtype=bool) if read is None else read.astype(bool)
        new = affine.at(len(known))
        if np.any(taken & mask & ((scale != new.scale) | (shift != new.shift))):
            return None
        scale, shift, taken = np.where(mask, new.scale, scale), np.where(mask, new.shift, shift), taken | mask
    return Affine.of(scale, shift)
