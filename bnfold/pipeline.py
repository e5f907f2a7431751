"""The main job: load, simplify, rewrite (fold and merge), check, verify, seal. Each step works on a whole model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from bnfold import constants
from bnfold.folding.report import FOLD_MAP, SOURCE_DIGEST, FoldReport
from bnfold.graph import external_tensors, total_bytes
from bnfold.graph.skeleton import check
from bnfold.io import Source, checked, detached, digest
from bnfold.io import save as _save
from bnfold.rewrite import rewrite
from bnfold.seal import seal
from bnfold.simplify import Mode, Simplified
from bnfold.simplify import simplify as _simplify

if TYPE_CHECKING:
    from bnfold.verify import Verdict

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Optimized:
    """A folded model, what was done to it and the proof that it is the same; `verdict` is None if not asked for."""

    model: ir.Model
    report: FoldReport
    verdict: Verdict | None
    simplified: Simplified
    bytes_before: int
    bytes_after: int
    external: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 proven or not asked for, 1 not equivalent, 3 inconclusive."""
        return 0 if self.verdict is None else self.verdict.exit_code

    @property
    def nodes_before(self) -> int:
        return self.simplified.nodes_before

    @property
    def nodes_after(self) -> int:
        return self.report.nodes_after

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as its source was stored, see `bnfold.save`; does not ask for the verdict."""
        _save(self.model, path, external=self.external)

    def to_dict(self) -> dict[str, Any]:
        return {
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "simplify": self.simplified.to_dict(),
            "fold": self.report.to_dict(),
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
        }

    def __str__(self) -> str:
        verdict = "not verified" if self.verdict is None else str(self.verdict)
        return (
            f"{self.report.folded} BatchNormalization folded, {self.report.kept} kept; "
            f"{self.nodes_before} → {self.nodes_after} nodes; {verdict}"
        )


def inspect(
    source: Source, *, freeze_initializers: bool = False, merge: bool = True, dims: Mapping[str, int] | None = None
) -> FoldReport:
    """Say of every BatchNormalization where it would be folded, or why not, and what layers would merge.

    `dims` sizes dynamic dimensions, by symbolic name or "input:axis", where it depends on them whether a merge pays.
    The model is left as it is.

    Raises `ModelError` if the source is no valid model.
    """
    model = checked(source)
    model = model.clone() if model is source else model
    return rewrite(model, freeze_initializers=freeze_initializers, merge=merge, dims=dims)


def optimize(
    source: Source,
    *,
    simplify: Mode = "auto",
    merge: bool = True,
    freeze_initializers: bool = False,
    dims: Mapping[str, int] | None = None,
    verify: bool = True,
    verify_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Optimized:
    """Fold every BatchNormalization that can be folded and verify the result against the source.

    `freeze_initializers` takes initializers that are also graph inputs as constants. `merge` makes one layer of
    parallel and sequential linear branches where that is cheaper. `dims` sizes dynamic dimensions, by symbolic name or
    "input:axis", for the verification and where it depends on them whether a merge pays. `verify_options` are the other
    keywords of `bnfold.verify`. `progress` is called with what is being done.

    Raises `ModelError` if the source is no valid model, and what `bnfold.verify` raises.
    """
    step = _Steps(progress)
    with step("load", "loading"):
        original = checked(source)
        before, external = total_bytes(original), any(external_tensors(original))
        fold_map, name = original.metadata_props.get(FOLD_MAP), digest(original)
        # A copy only where somebody still needs the original: the proof, or the caller whose model it is.
        model = original.clone() if verify or original is source else detached(original)
    with step("simplify", "simplifying"):
        simpler, simplified = _simplify(model, simplify)
        if simpler is not model:
            constants.note(model, simpler)
            model = simpler
    with step("fold", "folding"):
        report = rewrite(model, freeze_initializers=freeze_initializers, merge=merge, dims=dims)
        if model.metadata_props.get(FOLD_MAP) != fold_map:
            # One that was folded before keeps its first source.
            model.metadata_props.setdefault(SOURCE_DIGEST, name)
    with step("check", "checking"):
        check(model)
    verdict = None
    if verify:
        from bnfold.verify import verify as prove

        with step("verify", "verifying"):
            verdict = prove(original, model, dims=dims, progress=progress, **(verify_options or {}))
            if verdict.status == "pass":
                seal(model, name, [cell.provider for cell in verdict.cells])
    return Optimized(
        model=model,
        report=report,
        verdict=verdict,
        simplified=simplified,
        bytes_before=before,
        bytes_after=total_bytes(model),
        external=external,
        seconds=step.seconds,
    )


class _Steps:
    """The steps of one run: each is told when it begins, and timed."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, saying: str) -> Iterator[None]:
        if self.progress is not None:
            self.progress(saying)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

