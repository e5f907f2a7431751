"""One audit from end to end, of an ONNX model or of a PyTorch module."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir

from bnfold import io
from bnfold.audit import data as data_
from bnfold.audit.data import Array, Data, Given
from bnfold.audit.drift import compare
from bnfold.audit.findings import Code, Finding, codes
from bnfold.audit.health import examine, health
from bnfold.audit.moments import Moments
from bnfold.audit.observe import Outputs, Site, Unobserved, observe, sites
from bnfold.audit.recalibrate import recalibrate
from bnfold.audit.result import AuditReport, Drift, drifted
from bnfold.errors import UsageError
from bnfold.folding.frozen import nodes, recorded

Progress = Callable[[str], None]
Seen = tuple[Sequence[Site], Sequence[Moments], Sequence[Unobserved], Sequence[Finding]]


class Subject(Protocol):
    """What is audited: `health` from its numbers alone, `observe` on data, `renewed` with the data's statistics."""

    @property
    def batch_norms(self) -> int: ...

    def health(self) -> list[Finding]: ...

    def fit(self, given: Given) -> Data: ...

    def observe(self, data: Data, scores: Scores) -> Seen: ...

    def renewed(self, data: Data, progress: Progress) -> tuple[Subject, tuple[str, ...]]: ...

    def save(self, path: str | os.PathLike[str]) -> None: ...


@dataclass
class Scores:
    """Predicted classes of the first output that looks like class scores, `(N, K)`, batch by batch."""

    classes: list[Array] = field(default_factory=list)

    def __call__(self, outputs: Outputs) -> None:
        """Take in the outputs of one batch; a row that holds NaN predicts nothing."""
        for array in outputs.values():
            if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "fV":
                wide = array.astype(np.float32)
                self.classes.append(np.where(np.isnan(wide).any(1), -1, np.nan_to_num(wide).argmax(1)))
                return

    def accuracy(self, data: Data) -> float | None:
        """The share of right predictions; None without labels or scores."""
        found = np.concatenate(self.classes) if self.classes else np.zeros(0)
        if data.labels is None or len(found) != data.used:
            return None
        return float(np.mean(found == data.labels[: data.used]))


@dataclass
class OnnxSubject:
    """An ONNX model, folded or not."""

    model: ir.Model
    provider: str
    external: bool = False

    @property
    def batch_norms(self) -> int:
        names = {node.name for node in nodes(self.model)}
        return sum(1 for _ in nodes(self.model)) + sum(frozen.name not in names for frozen in recorded(self.model))

    def health(self) -> list[Finding]:
        names = {node.name for node in nodes(self.model)}
        folded = [finding for f in recorded(self.model) if f.name not in names for finding in examine(f)]
        return health(self.model) + folded

    def fit(self, given: Given) -> Data:
        return data_.for_model(self.model, given)

    def observe(self, data: Data, scores: Scores) -> Seen:
        found, hidden = sites(self.model)
        return found, observe(self.model, found, data, provider=self.provider, outputs=scores), hidden, ()

    def renewed(self, data: Data, progress: Progress) -> tuple[Subject, tuple[str, ...]]:
        copy = self.model.clone()
        names = recalibrate(copy, data, provider=self.provider, progress=progress)
        return OnnxSubject(copy, self.provider, self.external), names

    def save(self, path: str | os.PathLike[str]) -> None:
        io.save(self.model, path, external=self.external or None)


def run(
    source: Any,
    given: Given | None,
    renew: bool,
    allow: Sequence[str],
    how: Mapping[str, Any],
    provider: str,
    progress: Progress,
) -> AuditReport:
    """See `bnfold.audit.audit`."""
    waived = codes(allow)
    if renew and given is None:
        raise UsageError("recalibration needs data: give an .npz of the model's inputs")
    progress("reading the model")
    subject = _subject(source, how, provider)
    found, drift, before, after = subject.health(), None, None, None
    names: tuple[str, ...] = ()
    write: Callable[[str | os.PathLike[str]], None] | None = None
    if given is not None:
        data = subject.fit(given)
        progress(f"running {data.used} examples")
        scores = Scores()
        drift, more = _drift(subject.observe(data, scores), data)
        found, before = found + more, scores.accuracy(data)
        if renew:
            new, names = subject.renewed(data, progress)
            write, scores = new.save, Scores()
            if data.labels is not None:
                new.observe(data, scores)
            after = scores.accuracy(data)
    kept = tuple(finding for finding in found if finding.code not in waived)
    allowed = tuple(finding for finding in found if finding.code in waived)
    return AuditReport(subject.batch_norms, kept, allowed, drift, (before, after), names, write)


def _drift(seen: Seen, data: Data) -> tuple[Drift, list[Finding]]:
    found, moments, hidden, more = seen
    layers = compare([(site.frozen, site.at_input(m), site.live) for site, m in zip(found, moments, strict=True)])
    ranked = tuple(sorted(layers, key=lambda layer: -layer.distance))
    findings = [*more, *(finding for layer in ranked if (finding := drifted(layer)) is not None)]
    for site, m in zip(found, moments, strict=True):
        dead = site.live & (site.highest_output(m) <= 0) if site.relu else np.zeros(0, bool)
        if dead.any():
            detail = f"ReLU never fires in {int(dead.sum())} of {dead.size} channels on {data.used} examples"
            findings.append(Finding(Code.DEAD_RELU, site.frozen.name, detail, {"count": int(dead.sum())}))
    return Drift(data.used, ranked, tuple(hidden)), findings


def _subject(source: Any, how: Mapping[str, Any], provider: str) -> Subject:
    torch = sys.modules.get("torch")
    given_module = torch is not None and isinstance(source, torch.nn.Module)
    if given_module or any(how.values()) or _names_module(source):
        try:
            from bnfold.audit.loaded import ModuleSubject
        except ModuleNotFoundError as error:
            raise UsageError(f'auditing a PyTorch model needs {error.name}: pip install "bnfold[torch]"') from error
        return ModuleSubject.load(source, how)
    model = io.load(source)
    return OnnxSubject(model, provider, io.has_external(model))


def _names_module(source: Any) -> bool:
    """Whether a path or text names a checkpoint or a factory rather than an ONNX model."""
    if isinstance(source, (onnx.ModelProto, ir.Model)):
        return False
    path = Path(source)
    return path.suffix in (".safetensors", ".pt", ".pth", ".pt2", ".ckpt") or (not path.exists() and ":" in str(source))
