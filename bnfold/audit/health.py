"""Are a BatchNorm's frozen numbers sound? Read from its constants alone: no data, no runtime, no torch.

    not finite             NaN or ∞ in gamma, beta, running_mean or running_var
    negative variance      running_var < 0
    vanishing variance     0 ≤ running_var < epsilon: epsilon is then the larger part of the denominator
    initial statistics     running_mean = 0 and running_var = 1 in every channel: what PyTorch starts with
    dead gamma             |gamma| ≤ 10⁻⁴ of the layer's largest: the channel is the constant beta
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.arrays import Float64
from bnfold.audit.findings import AuditFinding, Code, finite
from bnfold.folding.frozen import Frozen, in_training, nodes, of_node
from bnfold.graph import label

Mask = npt.NDArray[np.bool_]

DEAD = 1e-4
SHOWN = 4


def health(model: ir.Model) -> list[AuditFinding]:
    """What is unsound about the BatchNormalization nodes of an ONNX model, in graph order."""
    found: list[AuditFinding] = []
    for node in nodes(model):
        if in_training(node):
            detail = "training_mode = 1: it normalises by each batch's own statistics"
            found.append(AuditFinding(Code.TRAINING_MODE, label(node), detail))
        else:
            frozen = of_node(node)
            found += [] if frozen is None else examine(frozen)
    return found


def examine(frozen: Frozen) -> list[AuditFinding]:
    """What is unsound about one BatchNorm's numbers."""
    return list(_examined(frozen))


def _examined(bn: Frozen) -> Iterator[AuditFinding]:
    def finding(code: Code, detail: str, **numbers: Any) -> AuditFinding:
        return AuditFinding(code, bn.name, detail, {"channels": bn.channels, **numbers})

    parts = {"gamma": bn.gamma, "beta": bn.beta, "running_mean": bn.mean, "running_var": bn.var}
    broken = {name: int((~np.isfinite(array)).sum()) for name, array in parts.items()}
    broken = {name: count for name, count in broken.items() if count}
    if broken:
        listed = ", ".join(f"{count} of {bn.channels} in {name}" for name, count in broken.items())
        yield finding(Code.NOT_FINITE, f"NaN or infinite: {listed}", **broken)
    with np.errstate(invalid="ignore"):
        negative, vanishing = bn.var < 0, (bn.var >= 0) & (bn.var < bn.epsilon)
    if negative.any():
        detail = f"running_var is negative in {_which(negative)}, lowest {np.nanmin(bn.var):.3g}"
        yield finding(Code.NEGATIVE_VARIANCE, detail, count=int(negative.sum()), lowest=float(np.nanmin(bn.var)))
    if vanishing.any():
        lowest = float(bn.var[vanishing].min())
        detail = f"running_var is below epsilon ({bn.epsilon:.0e}) in {_which(vanishing)}, lowest {lowest:.3g}"
        yield finding(Code.VANISHING_VARIANCE, detail, count=int(vanishing.sum()), lowest=lowest, epsilon=bn.epsilon)
    if bn.channels and (bn.mean == 0).all() and (bn.var == 1).all():
        yield finding(Code.INITIAL_STATISTICS, "running_mean is 0 and running_var 1 in every channel")
    dead = dead_gamma(bn.gamma)
    if dead.any():
        detail = f"|gamma| is below {DEAD:.0e} of the layer's largest in {_which(dead)}"
        yield finding(Code.DEAD_GAMMA, detail, count=int(dead.sum()), largest=finite(np.abs(bn.gamma).max()))


def dead_gamma(gamma: Float64) -> Mask:
    """`(C,)` bool: the channels whose gamma makes them constants."""
    size = np.abs(gamma)
    largest = size[np.isfinite(size)].max(initial=0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(size <= DEAD * largest)


def _which(mask: Mask) -> str:
    """`2 of 8 channels (0, 5)`."""
    indices = [int(index) for index in np.flatnonzero(mask)]
    shown = ", ".join(map(str, indices[:SHOWN])) + (" …" if len(indices) > SHOWN else "")
    return f"{len(indices)} of {mask.size} channels ({shown})"
