"""One audit from end to end, of an ONNX model or of a PyTorch module."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from bnfold import io
from bnfold.audit.data import Given
from bnfold.audit.drift import compare
from bnfold.audit.findings import AuditFinding, Code, codes
from bnfold.audit.onnx_model import OnnxSubject
from bnfold.audit.result import AuditReport, Drift, drifted
from bnfold.audit.subject import Progress, Scores, Seen, Subject
from bnfold.errors import UsageError
from bnfold.graph import external_tensors


def run(
    source: Any,
    given: Given | None,
    renew: bool,
    negate: bool,
    allow: Sequence[str],
    how: Mapping[str, Any],
    provider: str,
    progress: Progress,
) -> AuditReport:
    """See `bnfold.audit.audit`."""
    waived = codes(allow)
    if renew and given is None:
        raise UsageError("recalibration needs data: give an .npz of the model's inputs")
    if negate and not renew:
        raise UsageError("--negate says how to recalibrate: give --recalibrate too")
    progress("reading the model")
    subject = _subject(source, how, provider)
    found, drift, before, after = subject.health(), None, None, None
    names: tuple[str, ...] = ()
    write: Callable[[str | os.PathLike[str]], None] | None = None
    if given is not None:
        data = subject.fit(given)
        progress(f"running {data.used} examples")
        scores = Scores(data)
        seen = subject.observe(data, scores)
        drift, before = _drift(seen, data.used), scores.accuracy
        found += _found(seen, drift)
        if renew:
            new, names = subject.renewed(data, progress, negate)
            write, scores = new.save, Scores(data)
            if data.labels is not None:
                new.observe(data, scores)
            after = scores.accuracy
    kept = tuple(finding for finding in found if finding.code not in waived)
    allowed = tuple(finding for finding in found if finding.code in waived)
    return AuditReport(subject.batch_norms, kept, allowed, drift, (before, after), names, negate, write)


def _drift(seen: Seen, examples: int) -> Drift:
    """Every layer against the data, the most distant first."""
    layers = compare([(site.frozen, site.at_input(m), site.live) for site, m in seen.pairs()])
    return Drift(examples, tuple(sorted(layers, key=lambda layer: -layer.distance)), tuple(seen.unobserved))


def _found(seen: Seen, drift: Drift) -> Iterator[AuditFinding]:
    """What the data shows to be wrong."""
    yield from seen.findings
    yield from (finding for layer in drift.layers if (finding := drifted(layer)) is not None)
    for site, moments in seen.pairs():
        dead = site.live & (site.highest_output(moments) <= 0)
        if site.relu and dead.any():
            detail = f"ReLU never fires in {int(dead.sum())} of {dead.size} channels on {drift.examples} examples"
            yield AuditFinding(Code.DEAD_RELU, site.frozen.name, detail, {"count": int(dead.sum())})


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
    return OnnxSubject(model, provider, any(external_tensors(model)))


def _names_module(source: Any) -> bool:
    """Whether a path or text names a checkpoint or a factory rather than an ONNX model."""
    if isinstance(source, (onnx.ModelProto, ir.Model)):
        return False
    path = Path(source)
    return path.suffix in (".safetensors", ".pt", ".pth", ".pt2", ".ckpt") or (not path.exists() and ":" in str(source))
