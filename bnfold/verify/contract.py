"""The interface that a caller programs against: names, order, element types and ranks of inputs and outputs.

It is compared before any number: a model that must be called differently is another model.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bnfold.graph import size
from bnfold.inputs import feeds


def differences(original: ir.Model, candidate: ir.Model) -> tuple[list[str], list[str]]:
    """Return what breaks a caller of the original, and what merely differs."""
    broken: list[str] = []
    noted: list[str] = []
    pairs = (
        ("input", feeds.inputs(original), feeds.inputs(candidate)),
        ("output", list(original.graph.outputs), list(candidate.graph.outputs)),
    )
    for what, ours, theirs in pairs:
        ours_names, theirs_names = [str(v.name) for v in ours], [str(v.name) for v in theirs]
        if ours_names != theirs_names:
            order = "in another order" if sorted(ours_names) == sorted(theirs_names) else "named differently"
            broken.append(f"the {what}s are {order}: {_listed(theirs_names)} instead of {_listed(ours_names)}")
            continue
        for mine, other in zip(ours, theirs, strict=True):
            _compare(what, mine, other, broken, noted)
    lost = _overridable(original) - _overridable(candidate)
    if lost:
        count = len(lost)
        noted.append(f"{count} initializer{'s' if count > 1 else ''} could be overridden as inputs and no longer can")
    return broken, noted


def overridable(model: ir.Model) -> int:
    """How many initializers are graph inputs as well, so that a caller may override them."""
    return len(_overridable(model))


def _overridable(model: ir.Model) -> set[str]:
    return {str(v.name) for v in model.graph.inputs} & set(model.graph.initializers)


def _compare(what: str, mine: ir.Value, other: ir.Value, broken: list[str], noted: list[str]) -> None:
    name = f"{what} {mine.name!r}"
    if mine.dtype is not None and other.dtype is not None and mine.dtype != other.dtype:
        broken.append(f"{name} has type {other.dtype.name} instead of {mine.dtype.name}")
        return
    if mine.shape is None or other.shape is None:
        return
    if len(mine.shape) != len(other.shape):
        broken.append(f"{name} has rank {len(other.shape)} instead of {len(mine.shape)}")
        return
    for axis, (have, new) in enumerate(zip(map(size, mine.shape), map(size, other.shape), strict=True)):
        if isinstance(new, int) and isinstance(have, int) and new != have:
            broken.append(f"{name} has size {new} instead of {have} on axis {axis}")
        elif isinstance(new, int) and not isinstance(have, int) and what == "input":
            broken.append(f"{name} has the fixed size {new} on axis {axis}, which was dynamic")
        elif isinstance(have, int) and not isinstance(new, int) and what == "input":
            noted.append(f"{name} is dynamic on axis {axis}, which was fixed at {have}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
