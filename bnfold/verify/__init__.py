"""Are two models numerically the same? `certificate` proves own folds bit for bit, `compare` states the output test."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bnfold.verify.verdict import Cell, Verdict

if TYPE_CHECKING:
    from torch import nn

    from bnfold.io import Source

__all__ = ["Cell", "Verdict", "verify"]


def verify(
    reference: Source | nn.Module,
    candidate: Source,
    *,
    providers: Sequence[str] = ("cpu",),
    inputs: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    samples: int = 16,
    dims: Mapping[str, int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    expect_folds: int | None = None,
    levels: Sequence[str] | None = None,
    quick: bool = False,
    keep_going: bool = False,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Say whether `candidate` computes what `reference` does: pass, mismatch or inconclusive.

    Models are paths, `onnx.ModelProto`s or `ir.Model`s and are left as they are; the reference may be a PyTorch module
    instead, taken in eval mode. Constants are compared first, then each changed layer on equal inputs, then the
    outputs: each output of each sample is held against the reference in float64. Its RMS error may be τ times that of
    the reference itself on the same provider, without graph optimizations, or of rounding the weights once, whichever
    is larger.

    `inputs` are arrays by input name, or an `.npz` file of them; otherwise `samples` sets are drawn from `seed`.
    `dims` sizes dynamic dimensions by symbolic name or "input:axis". `rtol` and `atol` are an extra limit on each
    value. With `expect_folds`, fewer folded BatchNorms than that are inconclusive. `levels` are those of
    `bnfold.verify.levels` to run the candidate at: by default without optimizations and as deployed. `quick` takes
    four samples, one of them for the layers, and one perturbation of the weights. With `keep_going` the checks go on
    after a mismatch. `strict` refuses any node that runs on another provider. `progress` is called with what is being
    done.

    Raises `ModelError`, `InputError` or `ProviderError` for what can't be loaded, fed or run, and `UsageError` for
    arguments that do not fit the model.
    """
    from bnfold.verify.gate import Gate
    from bnfold.verify.options import Options

    options = Options(
        tuple(providers), inputs, seed, samples, dims, rtol, atol, expect_folds,
        None if levels is None else tuple(levels), quick, keep_going, strict,
    )  # fmt: skip
    return Gate(reference, candidate, options, progress).run()
