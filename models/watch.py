"""What BN's statistics do while a net trains, and how to estimate them again when it has.

Running statistics are an exponentially weighted moving average (EWMA) of batch statistics: `running` moves towards each
`batch` by the share `momentum`. Recorded are both, at steps that get sparser, so that a report can show how one follows
the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.models.data import Images

RECORDS = 100
"""About as many steps are recorded of a training, however long it is."""


@dataclass(frozen=True)
class Record:
    """One BN at one step: how far the batch's statistics are from the running ones, and both for the first channel.

    `gap` is the median over channels of |batch mean − running mean| / running deviation, `ratio` that of the batch's
    over the running variance; both are 0 and 1 for statistics that have converged on batches without noise.
    """

    step: int
    layer: str
    gap: float
    ratio: float
    batch_mean: float
    running_mean: float
    batch_var: float
    running_var: float


def recorded_steps(total: int) -> frozenset[int]:
    """Steps from 0, dense in the beginning, where statistics move fastest, and sparse to the end of `total`."""
    return frozenset(np.unique(np.geomspace(1, max(total, 1), RECORDS).astype(int) - 1).tolist())


class Watch:
    """Records every BN of a module in training mode at some steps; it touches neither values nor gradients."""

    def __init__(self, module: nn.Module, total: int) -> None:
        self.records: list[Record] = []
        self.step = 0
        self._steps = recorded_steps(total)
        self._hooks = [
            part.register_forward_pre_hook(self._hook(name))
            for name, part in module.named_modules()
            if isinstance(part, _BatchNorm) and part.running_mean is not None
        ]

    def close(self) -> None:
        """Take the hooks off again."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def look(part: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
            if part.training and self.step in self._steps:
                self.records.append(_record(self.step, name, part, inputs[0].detach()))

        return look


@torch.no_grad()
def _record(step: int, name: str, part: _BatchNorm, x: Tensor) -> Record:
    """The statistics before this batch has moved them."""
    assert part.running_mean is not None and part.running_var is not None
    mean, var = batch_statistics(x.float())
    gap = ((mean - part.running_mean).abs() / (part.running_var + part.eps).sqrt()).median()
    ratio = ((var + part.eps) / (part.running_var + part.eps)).median()
    first = (values[0] for values in (mean, part.running_mean, var, part.running_var))
    return Record(step, name, *(float(value) for value in (gap, ratio, *first)))


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of `(N, C, *positions)` per channel, as BN tracks them."""
    flat = x.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1, correction=min(1, flat.shape[1] - 1))


def reestimate(module: nn.Module, images: Images, *, batch_size: int = 256) -> None:
    """Replace every BN's running statistics by plain averages over all of `images`, whatever the momentum was.

    "Precise BN" (Wu & Johnson 2021, https://arxiv.org/abs/2105.07576); the weights stay as they are.
    """
    from torch.optim.swa_utils import update_bn

    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    # Only BN is to learn here: dropout would add noise to what is estimated.
    frozen = [part for part in module.modules() if not isinstance(part, _BatchNorm)]

    def batches() -> Iterator[Tensor]:
        for part in frozen:
            part.training = False
        # A last batch of one can't be normalised; the split is even instead.
        for chunk in np.array_split(images, max(1, round(len(images) / batch_size))):
            yield torch.from_numpy(np.ascontiguousarray(chunk))

    try:
        update_bn(batches(), module)
    finally:
        for part, mode in modes:
            part.training = mode


def columns(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records as rows of a table."""
    return [vars(record) for record in records]
