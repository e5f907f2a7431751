"""The health of every BatchNorm: its mode, its statistics, and whether they still describe the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bnfold.audit.findings import AuditFinding, Code
from bnfold.audit.health import health

if TYPE_CHECKING:
    from bnfold.audit.data import Given
    from bnfold.audit.result import AuditReport

__all__ = ["AuditFinding", "Code", "audit", "health"]


def audit(
    source: Any,
    data: Given | None = None,
    *,
    recalibrate: bool = False,
    negate: bool = False,
    allow: Sequence[str] = (),
    weights: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    ema: bool = False,
    partial: bool = False,
    provider: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> AuditReport:
    """Say whether a model's BatchNorms are sound and, given `data`, whether they still describe it.

    `source` is an ONNX model (a path, an `onnx.ModelProto` or an `onnx_ir.Model`), folded by bnfold or not, or a
    PyTorch one: a module, a checkpoint, or `"package.module:factory"` (see `bnfold.export`). `data` maps the
    model's inputs to arrays of examples, or is an `.npz` of them; `labels` or `y` beside them are the right classes,
    and give the accuracy. `allow` are codes of findings that do not count. `recalibrate` re-estimates the statistics
    on the data in a copy, which `save` writes; the source is left as it is. With `negate` the copy takes its input with
    the opposite sign, for data that are negatives of what the model was trained on.

    Raises `ModelError`, `InputError` or `UsageError`.

    >>> print(audit("model.onnx", "x.npz"))  # doctest: +SKIP
    9 BatchNorms: nothing found; drift 0.03σ over 359 examples
    """
    from bnfold.audit.job import run

    how = {"weights": weights, "kwargs": kwargs, "prefix": prefix, "ema": ema, "partial": partial}
    return run(source, data, recalibrate, negate, allow, how, provider, progress or (lambda text: None))
