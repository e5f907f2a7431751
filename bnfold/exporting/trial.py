"""One run of a module on its examples, before anything is converted: does it work, and what does it do with them?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnfold.exporting.dynamic import BATCH, Axes
from bnfold.models import examples
from bnfold.models.modules import eval_mode
from bnfold.models.quiet import silence


@dataclass(frozen=True)
class Trial:
    """The names of the outputs, None where one is no tensor; what has the batch as first axis; the calls of BN."""

    names: list[str] | None
    batched: set[str]
    batch_norms: int


def run(module: nn.Module, given: dict[str, Tensor], axes: Axes, label: str) -> Trial:
    """Run the module on the examples and, where the batch is free, on one more. Raises `InputError` or `ModelError`."""
    batched = {name for name, places in axes.items() if places.get(0) == BATCH}
    with eval_mode(module), torch.no_grad(), silence():
        names, calls = examples.run(module, given, label)
        if batched:
            batched |= examples.follow_batch(module, given, batched, names or [], label)
    return Trial(names, batched, calls)
