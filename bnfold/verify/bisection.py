"""Which layers of a candidate differ: by provenance in one pass, by splicing where names can't be trusted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from bnfold import io, runtime
from bnfold.errors import ModelError, OutputError, UsageError
from bnfold.graph import total_bytes
from bnfold.inputs import feeds
from bnfold.inputs.feeds import Sample
from bnfold.io import Source, checked
from bnfold.verify import abreast, certificate, contract
from bnfold.verify.kernels.base import Unsupported
from bnfold.verify.local import Layer, Local
from bnfold.verify.reference import Evaluator
from bnfold.verify.sessions import placed
from bnfold.verify.sides import OnnxReference, Run
from bnfold.verify.splice import Search
from bnfold.verify.trial import Expected, Trial
from bnfold.verify.windows import Windows

Method = Literal["local", "splice"]
NOISE_RUNS = 3
COMMAND = "bnfold verify reference.onnx candidate.onnx --inputs inputs.npz"


@dataclass(frozen=True)
class Bisection:
    """The layers of the candidate at which errors arise, in the reference's order.

    `status` is "same" (no layer differs), "found", or "inconclusive" with `reasons`: the outputs differ but no layer
    could be named, or the models can't be compared. `method` says how: "local" holds every changed layer against the
    reference on equal inputs, in one pass; "splice" searches hybrids of the two models, `runs` of them.
    """

    status: Literal["same", "found", "inconclusive"]
    method: Method
    layers: tuple[Layer, ...] = ()
    windows: int = 0
    runs: int = 0
    reasons: tuple[str, ...] = ()
    cut: Windows | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        """0 no layer differs, 1 found, 3 inconclusive."""
        return {"same": 0, "found": 1, "inconclusive": 3}[self.status]

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "method": self.method,
            "windows": self.windows,
            "runs": self.runs,
            "layers": [layer.to_dict() for layer in self.layers],
            "reasons": list(self.reasons),
        }

    def __str__(self) -> str:
        how = f"{_count(self.windows, 'changed layer')} compared"
        how = how if self.method == "local" else f"{how}, {_count(self.runs, 'hybrid')} run"
        if self.status == "same":
            return f"no layer differs ({how})"
        if self.status == "inconclusive":
            return f"inconclusive: {'; '.join(self.reasons)}"
        count = "1 layer differs" if len(self.layers) == 1 else f"{len(self.layers)} layers differ, first"
        return f"{count}: {self.layers[0].label!r} ({how})"

    def save(self, folder: str | os.PathLike[str], layer: int = 0) -> None:
        """Write a reproducer of one layer: both its sides as models, the inputs, and the command that shows the fault.

        `folder` must not exist, or be empty. Raises `OutputError` where it can't be written, and `UsageError` where no
        layer differs.
        """
        if not self.layers or self.cut is None:
            raise UsageError("no layer differs, so there is nothing to reproduce")
        target, found = Path(folder), self.layers[layer]
        scratch = target.with_name(f".{target.name}.{os.urandom(6).hex()}.tmp")
        try:
            check_folder(target)
            scratch.mkdir()
            sides = Local(self.cut, (), 0.0, only=[found.name]).sides(found.window, found.witness)
            result = Evaluator(sides.original).run(found.witness)[found.name]
            for side in (sides.original, sides.candidate):
                side.graph.outputs[0].shape = ir.Shape([f"y_{axis}" for axis in range(result.ndim)])
            io.save(sides.original, scratch / "reference.onnx", external=False)
            io.save(sides.candidate, scratch / "candidate.onnx", external=False)
            # One set of inputs: the axis in front counts the sets.
            np.savez(scratch / "inputs.npz", **{name: array[None] for name, array in found.witness.items()})  # type: ignore[arg-type]
            (scratch / "README.txt").write_text(f"{found.complaint}\n\n{COMMAND}\n", encoding="utf-8")
            if target.exists():
                target.rmdir()
            os.replace(scratch, target)
        except OSError as error:
            raise OutputError(f"{target}: can't be written: {error.strerror}; choose another folder") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise `OutputError` unless a reproducer can be written at `path`: a folder that is not there yet, or is empty."""
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target}: is there already; name a new folder for the reproducer")
    if not target.absolute().parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}; create it first")


def bisect(
    reference: Source,
    candidate: Source,
    *,
    provider: str = "cpu",
    inputs: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    samples: int = 16,
    dims: Mapping[str, int] | None = None,
    method: Method | None = None,
    progress: Callable[[str], None] | None = None,
) -> Bisection:
    """Name the layers of `candidate` that compute something else than `reference` does.

    With bnfold's fold map, and by `method="local"`, every changed layer gets the reference's own activations and is
    held against float64. Without one, and by "splice", hybrids of both models are run until the output shows which
    layer is at fault; where the output shows nothing, the layers are compared locally after all. One of the samples of
    each kind is used; the rest of the arguments are those of `bnfold.verify`.

    Raises `ModelError`, `InputError`, `ProviderError` and `UsageError` as `bnfold.verify` does.
    """
    say = progress or (lambda text: None)
    original, changed = checked(reference), checked(candidate)
    broken, _ = contract.differences(original, changed)
    if broken:
        return Bisection("inconclusive", method or "local", reasons=tuple(broken))
    say("matching the layers")
    trusted = certificate.trusts_names(original, changed)
    windows, layers = certificate.cut(original, changed, trusted=trusted)
    refuted = {name for name, layer in layers.items() if layer is not None and layer.ratio > 1.0}
    work = _Work(windows, reference, provider, seed, say, refuted)
    try:
        with abreast.one_core_products(total_bytes(original)):
            return work.run(work.draw(inputs, samples, dims), method or ("local" if trusted else "splice"))
    except Unsupported as missing:
        return Bisection("inconclusive", method or "local", reasons=(f"no float64 evaluation of: {missing}",))


@dataclass
class _Work:
    windows: Windows
    source: Source
    provider: str
    seed: int
    say: Callable[[str], None]
    refuted: set[str]

    def __post_init__(self) -> None:
        self.side = OnnxReference(self.windows.models[0], self.source)
        self.exact: Evaluator = self.side.exact()
        session = self.side.session(self.provider, gate=True, strict=False)
        placed(session, self.provider)
        self.plain: Run = partial(runtime.run, session)

    def draw(self, inputs: Any, samples: int, dims: Mapping[str, int] | None) -> list[Sample]:
        model = self.windows.models[0]
        if inputs is not None:
            return feeds.given(model, inputs, samples)
        drawn = feeds.generated(
            model, seed=self.seed, samples=samples, dims=dims, attempt=partial(runtime.attempt, self.plain)
        )
        return list({sample.kind: sample for sample in reversed(drawn)}.values())

    def run(self, drawn: Sequence[Sample], method: Method) -> Bisection:
        if method == "local":
            return self.local(drawn, "local", 0)
        self.say("measuring the noise")
        expected = [Expected(sample, self.exact.run(sample.feeds)) for sample in drawn]
        for run in range(NOISE_RUNS):
            noisy = self.side.perturbed(self.seed * 1000 + run)
            for each in expected:
                each.perturb(noisy)
        trials = [Trial(each, self.plain(each.sample.feeds)) for each in expected]
        search = Search(self.windows, lambda hybrid: self.ratio(hybrid, trials))
        found = search.run()
        self.windows = search.windows
        if not found:
            return self.local(drawn, "splice", search.runs)
        self.say("comparing the layers found")
        local = Local(self.windows, (self.provider,), self.side.unit, only=[w.name for w in found], keep=True)
        evaluator = Evaluator(self.windows.models[0])
        for sample in drawn:
            local.run(evaluator, sample)
        layers = tuple(local.layers.values())
        return Bisection("found", "splice", layers, len(self.windows.changed), search.runs, cut=self.windows)

    def ratio(self, hybrid: ir.Model, trials: Sequence[Trial]) -> float:
        """The worst error of a hybrid over what rounding explains."""
        self.say("running a hybrid")
        session = runtime.session(hybrid, self.provider, optimize="off")
        worst = 0.0
        for trial in trials:
            try:
                found = runtime.run(session, trial.sample.feeds)
            except ModelError:
                return float("inf")
            measured = [trial.measure(name, found[name]) for name in self.side.outputs]
            worst = max(worst, *(float("inf") if m.mismatch else m.ratio for m in measured))
        return worst

    def local(self, drawn: Sequence[Sample], method: Method, runs: int) -> Bisection:
        """Compare every changed layer on the reference's own activations."""
        self.say("comparing layer by layer")
        local = Local(self.windows, (self.provider,), self.side.unit, refuted=self.refuted)
        evaluator = Evaluator(self.windows.models[0])
        for sample in drawn:
            local.run(evaluator, sample)
        faulty = tuple(local.faulty(drawn))
        refuted = [layer for layer in local.layers.values() if layer.name in self.refuted]
        unchecked = [f"layer {x.label!r}: its constants are wrong, which no input that was run shows" for x in refuted]
        unchecked += [f"layer {x.label!r}: {x.unchecked}" for x in local.reported() if x.unchecked is not None]
        status: Any = "found" if faulty else "inconclusive" if unchecked else "same"
        reasons = tuple(unchecked) if status == "inconclusive" else ()
        return Bisection(status, method, faulty, len(local.layers), runs, reasons, self.windows)
