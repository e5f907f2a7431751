"""V1, the certificate: the whole candidate against the original, without any input.

Our own result is made again: the fold is deterministic, so the candidate equals its replay bit for bit, folded or not,
in every initializer, attribute and edge. Independently of the code that folds, and for a third party's result instead,
the models are cut into windows: what is equal in both is proven by that, and what each changed one computes is worked
out anew from the original (`recompute`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from bnfold import __version__, metadata
from bnfold.constants import CONSTANTS, noted
from bnfold.folding.report import FOLD_MAP, FOLD_MAP_VERSION, SOURCE_DIGEST
from bnfold.graph import BATCH_NORM, all_nodes, is_op
from bnfold.io import digest
from bnfold.rewrite import clean, rewrite
from bnfold.simplify import simplify
from bnfold.verify.probe import Recomputed
from bnfold.verify.recompute import recompute
from bnfold.verify.simplified import simplified
from bnfold.verify.structure import model_differences
from bnfold.verify.verdict import Finding, inconclusive
from bnfold.verify.windows import Windows

# Differences named in the verdict; the rest is counted.
SHOWN = 8


@dataclass
class Certificate:
    """What was found: `applies` is False where no fold map of this version says what was done.

    `layers` are the recomputed windows, `unproven` the names of the changed ones that are no affine map.
    """

    applies: bool = False
    folds: int = 0
    layers: list[Recomputed] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    windows: Windows | None = None
    problems: list[Finding] = field(default_factory=list)
    doubts: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def recomputed(self) -> int:
        """How many changed layers are, constant by constant, what the original makes them."""
        return sum(layer.ratio <= 1.0 for layer in self.layers)

    @property
    def refuted(self) -> set[str]:
        """The names of the layers whose constants are not what the original makes them."""
        return {layer.name for layer in self.layers if layer.ratio > 1.0}

    @property
    def worst(self) -> Recomputed | None:
        """The layer whose worst-case difference over |x| ≤ 1 is largest."""
        return max(self.layers, key=lambda layer: layer.slope + layer.offset, default=None)

    def label(self, name: str) -> str:
        """What users call the layer that computes a value."""
        window = self.windows.by_name.get(name) if self.windows else None
        return window.label if window else name

    @property
    def summary(self) -> str:
        """What was proven, in a clause."""
        if self.problems:
            return ""
        parts = [f"bit for bit the replayed fold of {self.folds} BatchNorms"] if self.applies else []
        changed = len(self.layers) + len(self.unproven)
        if changed:
            parts.append(f"{self.recomputed} of {changed} changed layers recomputed")
        worst = self.worst
        if worst is not None:
            apart = f"{worst.slope:.2g}·B + {worst.offset:.2g}"
            parts.append(f"at worst {self.label(worst.name)!r} is off by {apart} for inputs up to B in size")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        worst = self.worst
        return {
            "applies": self.applies,
            "folds": self.folds,
            "windows": 0 if self.windows is None else len(self.windows.listed),
            "changed": len(self.layers) + len(self.unproven),
            "recomputed": self.recomputed,
            "unproven": self.unproven,
            "worst_case": None if worst is None else {"layer": self.label(worst.name), **worst.to_dict()},
            "summary": self.summary,
        }


def check(original: ir.Model, candidate: ir.Model, expect_folds: int | None = None) -> Certificate:
    """Check the candidate against the original and its fold map; both are left as they are."""
    result = Certificate()
    before, after = count(original), count(candidate)
    result.folds = before - after
    if expect_folds is not None and result.folds < expect_folds:
        text = f"{expect_folds} folds were expected, but the candidate has {after} of the original's {before}"
        result.doubts.append(inconclusive(f"{text} BatchNorms"))
    trusted = FOLD_MAP in candidate.metadata_props and _replay(original, candidate, result)
    result.windows, layers = cut(original, candidate, trusted=trusted)
    for name, layer in layers.items():
        if layer is None:
            result.unproven.append(name)
            continue
        result.layers.append(layer)
        if layer.ratio > 1.0:
            where, how = layer.at or result.label(name), "times further from the folded one than rounding allows"
            how = f"{layer.ratio:.3g} {how}" if math.isfinite(layer.ratio) else "not what the original makes it"
            result.problems.append(_problem(f"the {layer.part} of {where!r} is {how}", where))
    source = candidate.metadata_props.get(SOURCE_DIGEST)
    if result.problems and source is not None and source != digest(original):
        result.warnings.append("the candidate's metadata names another file than this original as its source")
    return result


def cut(original: ir.Model, candidate: ir.Model, *, trusted: bool) -> tuple[Windows, dict[str, Recomputed | None]]:
    """Cut two models into windows whose values mean the same in both; return them with the changed ones recomputed."""
    windows = Windows(original, candidate, trusted=trusted)
    layers = dict(recompute(windows, own=trusted))
    first = {name: windows.by_name[name].label for name, layer in layers.items() if layer and layer.decisive}
    while rescaled := {name for name, layer in layers.items() if not trusted and layer is not None and layer.moved}:
        # What reads such a layer may take the scale back, so that only both together mean what they did.
        wider = windows.wider(windows.without | rescaled)
        if len(wider.listed) == len(windows.listed):
            break
        windows, layers = wider, dict(recompute(wider, own=False))
    for name, layer in layers.items():
        if layer is not None and layer.decisive:
            inside = {str(value.name) for node in windows.by_name[name].original.nodes for value in node.outputs}
            at = next((label for narrow, label in first.items() if narrow in inside), "")
            layers[name] = replace(layer, at=at)
    return windows, layers


def count(model: ir.Model, op_type: str = BATCH_NORM) -> int:
    """How many nodes of a kind the model holds, control-flow bodies and functions included."""
    return sum(is_op(node, op_type) for node in all_nodes(model))


def fold_log(model: ir.Model) -> list[Mapping[str, Any]] | None:
    """Return the entries of the fold map in the model's metadata; None if there is none that can be read."""
    try:
        found = metadata.read(model, FOLD_MAP)
        folds = found["folds"] if found["version"] == FOLD_MAP_VERSION else None
    except (ValueError, TypeError, KeyError):
        return None
    return folds if isinstance(folds, list) and all(isinstance(entry, Mapping) for entry in folds) else None


def _replay(original: ir.Model, candidate: ir.Model, result: Certificate) -> bool:
    """Make the fold again and compare; return whether the candidate's names are what bnfold left them.

    They are not where only onnxsim, which keeps names on what it rewrites, makes the same again.
    """
    log = fold_log(candidate)
    if log is None:
        text = "the candidate's fold map can't be read; remove it from the metadata or fold again"
        result.doubts.append(inconclusive(text))
        return False
    done = log[len(fold_log(original) or ()) :]
    if done and next(model_differences(original, candidate), None) is None:
        result.doubts.append(inconclusive(f"the fold map lists {len(done)} folds, but the candidate is the original"))
        return False
    maker = metadata.read(candidate, FOLD_MAP).get("bnfold")
    if maker != __version__:
        # Another release may fold further, or write the same fold otherwise.
        result.warnings.append(f"bnfold {maker} folded the candidate, this is {__version__}: not replayed bit for bit")
        return False
    result.applies = True
    differences, renamed = _nearest(original, candidate)
    result.problems += map(_problem, differences[:SHOWN])
    if len(differences) > SHOWN:
        result.problems.append(_problem(f"{len(differences) - SHOWN} further differences"))
    return not renamed


def _problem(text: str, layer: str | None = None) -> Finding:
    return Finding("certificate", f"certificate: {text}", layer)


def trusts_names(original: ir.Model, candidate: ir.Model) -> bool:
    """Whether the candidate's names are those that bnfold's fold leaves, right or wrong as its numbers may be."""
    return FOLD_MAP in candidate.metadata_props and _replay(original, candidate, Certificate())


def _nearest(original: ir.Model, candidate: ir.Model) -> tuple[list[str], bool]:
    """Return the differences from the recipe that comes nearest, and whether onnxsim had a part in that one."""
    best: tuple[list[str], bool] | None = None
    wanted = _cleaned(candidate.clone())
    for renamed, made in _recipes(original, candidate):
        found = list(itertools.islice(model_differences(_cleaned(made), wanted), 10_000))
        if best is None or len(found) < len(best[0]):
            best = found, renamed
        if not found:
            break
    assert best is not None
    return best


def _recipes(original: ir.Model, candidate: ir.Model) -> Iterator[tuple[bool, ir.Model]]:
    """Yield what bnfold may have made of the original, and whether onnxsim had a part in it.

    Where the candidate notes which constants were simplified, that is done again here; onnxsim, which takes seconds,
    is asked only if it comes out otherwise.
    """
    listed = [v.name for v in original.graph.inputs if v.name in original.graph.initializers]
    kept = {v.name for v in candidate.graph.inputs}
    freeze = bool(listed) and not any(name in kept for name in listed)

    done = (fold_log(candidate) or [])[len(fold_log(original) or ()) :]
    merges = [entry for entry in done if entry.get("judgement") == "merge"]
    dims = merges[0].get("dims") if merges else None

    def folded(model: ir.Model) -> ir.Model:
        rewrite(model, freeze_initializers=freeze, merge=bool(merges), dims=dims)
        return model

    if candidate.metadata_props.get(CONSTANTS) == original.metadata_props.get(CONSTANTS):
        yield False, folded(original.clone())
        return
    names = noted(candidate)
    again = None if names is None else simplified(original, names)
    if again is not None:
        yield False, folded(again)
    yield True, folded(simplify(original.clone(), "always")[0])


def _cleaned(model: ir.Model) -> ir.Model:
    """The model without what nothing reads; a constant is one whether a node or an initializer holds it."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    clean(model)
    return model
