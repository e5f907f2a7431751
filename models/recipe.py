"""How to train: the numbers that a user chooses, checked, and what is easily got wrong about them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bnfold.errors import UsageError

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}

SMALL_BATCH = 16
"""Below this many examples a step BN's estimates cost accuracy (Wu & He 2018, https://arxiv.org/abs/1803.08494)."""

SWAPPED_MOMENTUM = 0.9
"""From here on a PyTorch momentum is more likely a decay that was meant."""


@dataclass(frozen=True)
class Recipe:
    """The settings of one training; raises `UsageError` for what is out of range.

    `batch_size` is over all processes. `clip_grad` is the largest norm of the gradient, 0 for no limit. `patience` is
    the number of epochs without a better score after which training stops, 0 for never. `devices` processes run on
    each of `nodes` machines.
    """

    epochs: int = 20
    lr: float = 0.01
    batch_size: int = 64
    weight_decay: float = 0.05
    clip_grad: float = 0.0
    patience: int = 0
    precision: str = "32"
    seed: int = 0
    device: str = "cpu"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        processes = max(self.devices * self.nodes, 1)
        for name, value, sound, range_ in (
            ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("lr", self.lr, 0 < self.lr < math.inf, "a finite number above 0"),
            ("weight decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "a finite number from 0"),
            ("clip grad", self.clip_grad, 0 <= self.clip_grad < math.inf, "a finite number from 0 (no limit)"),
            ("patience", self.patience, self.patience >= 0, "at least 0 (never)"),
            ("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295"),
            ("devices", self.devices, self.devices >= 1, "at least 1"),
            ("nodes", self.nodes, self.nodes >= 1, "at least 1"),
            ("batch size", self.batch_size, self.batch_size >= 2, "at least 2: BN needs two examples to normalise"),
            ("batch size", self.batch_size, self.batch_size % processes == 0, f"a multiple of {processes} processes"),
        ):
            if not sound:
                raise UsageError(f"{name} is {value}; it must be {range_}")
        if self.precision == "16" and self.device == "cpu":
            raise UsageError("precision is 16; a CPU computes with 32 or bf16")

    def notes(self, norm: str, momentum: float) -> Iterator[str]:
        """What the user should know about BN under these settings, though it is allowed."""
        if norm != "batch":
            return
        if self.batch_size < SMALL_BATCH:
            yield (
                f"batches of {self.batch_size} give BN rough estimates of mean and variance;"
                " consider --norm group, or --reestimate for the statistics that are frozen"
            )
        if momentum >= SWAPPED_MOMENTUM:
            yield (
                f"momentum {momentum:g} is PyTorch's, the weight of the newest batch: the running statistics forget all"
                f" but the last few; a decay of {momentum:g}, as Keras counts, is momentum {1 - momentum:.3g}"
            )


def momentum_of(momentum: float | None = None, decay: float | None = None) -> float | None:
    """PyTorch's momentum m, from itself or from a decay d as Keras counts: `running = (1 − m)·running + m·batch`,
    and m = 1 − d; None for neither.

    Raises `UsageError` where both are given, or a decay that is no share.

    >>> momentum_of(decay=0.75)
    0.25
    """
    if momentum is not None and decay is not None:
        raise UsageError(f"momentum {momentum:g} and decay {decay:g} say the same thing twice; give one of them")
    if decay is None:
        return momentum
    if not 0 <= decay < 1:
        raise UsageError(f"decay is {decay:g}; it must be from 0, below 1")
    # 1 − 0.9 is 0.09999999999999998.
    return round(1 - decay, 12)
