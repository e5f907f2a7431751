"""What all samples together say: problems, and what makes the comparison too weak to be a pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from bnfold.verify.sides import Reference
from bnfold.verify.tally import CellTally, Constancy, Coverage
from bnfold.verify.verdict import Finding, inconclusive

# Shares of the activations' channels that must fire: below the first nothing is proven, below the second little.
FIRING, MOSTLY = 0.01, 0.5


@dataclass
class Judgement:
    """Reasons for inconclusive, and what a user should know."""

    doubts: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def judge(
    model: ir.Model, side: Reference, tallies: Iterable[CellTally], constancy: Mapping[str, Constancy],
    coverage: Coverage,
) -> Judgement:  # fmt: skip
    """Collect what speaks against a pass; `model` is any with the outputs' types."""
    tallies = list(tallies)
    found = Judgement([t.doubts[0] for t in tallies if t.doubts], [t.warnings[0] for t in tallies if t.warnings])
    values = {str(v.name): v for v in model.graph.outputs}
    moving = [n for n in constancy if n not in side.constant and constancy[n].verdict(n) is None]
    for name, seen in constancy.items():
        text = seen.verdict(name)
        if name in side.constant:
            text = f"output {name!r} depends on no input"
        if text is not None:
            # A constant beside outputs that do vary (prior boxes, a class index) is compared, but proves nothing.
            dtype = values[name].dtype
            harmless = moving and (name in side.constant or (dtype is not None and not dtype.is_floating_point()))
            if harmless:
                found.warnings.append(text)
            else:
                found.doubts.append(inconclusive(text, name))
    found.doubts += [reason for t in tallies if (reason := t.power()) is not None]
    fraction = coverage.fraction
    if fraction is not None and fraction < FIRING:
        found.doubts.append(inconclusive(f"only {fraction:.1%} of the activations' channels ever fire on these inputs"))
    elif fraction is not None and fraction < MOSTLY:
        found.warnings.append(f"only {fraction:.0%} of the activations' channels ever fire on these inputs")
    return found
