"""What an audit can find: a closed set of codes, each with its remedy, and a finding with its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bnfold.errors import RejectedError, UsageError

SHOWN = 3
"""Names in one line."""


class Code(Enum):
    """Why a BatchNorm is not sound; the value is the code that reports and `--allow` use."""

    TRAINING_MODE = "training-mode"
    NO_STATISTICS = "no-statistics"
    NEVER_UPDATED = "never-updated"
    INITIAL_STATISTICS = "initial-statistics"
    NOT_FINITE = "not-finite"
    NEGATIVE_VARIANCE = "negative-variance"
    VANISHING_VARIANCE = "vanishing-variance"
    DEAD_GAMMA = "dead-gamma"
    DEAD_RELU = "dead-relu"
    MOMENTUM = "momentum"
    FROZEN_BUT_TRAINING = "frozen-but-training"
    SHARED = "shared"
    DRIFTED = "drifted"
    DRIFTED_CHANNELS = "drifted-channels"

    @property
    def remedy(self) -> str:
        """What to do about it, in one clause."""
        return REMEDIES[self]


REMEDIES: dict[Code, str] = {
    Code.TRAINING_MODE: "call model.eval() before anything is measured or exported",
    Code.NO_STATISTICS: "build it with track_running_stats=True and train it, or use GroupNorm",
    Code.NEVER_UPDATED: "load the trained buffers too (a state dict, not only parameters), or re-estimate them",
    Code.INITIAL_STATISTICS: "train in training mode, load the trained buffers, or re-estimate them with --recalibrate",
    Code.NOT_FINITE: "training diverged or the file is damaged: go back to an earlier checkpoint",
    Code.NEGATIVE_VARIANCE: "no variance is negative: the buffers are swapped or damaged; load them again",
    Code.VANISHING_VARIANCE: "the input hardly varies there, so epsilon decides the scale: prune the channel",
    Code.DEAD_GAMMA: "the channel is the constant beta: prune it, or leave it out of weight decay and train on",
    Code.DEAD_RELU: "the channel is always 0 behind it: prune it, or lower the learning rate and train on",
    Code.MOMENTUM: "PyTorch's momentum is 1 − Keras's: give 0.1 where Keras has 0.9",
    Code.FROZEN_BUT_TRAINING: "frozen parameters do not freeze statistics: call eval() on it while you fine-tune",
    Code.SHARED: "each call has other statistics: give every call a BatchNorm of its own",
    Code.DRIFTED: "re-estimate the statistics on this data with --recalibrate, or look for what changed in the input",
    Code.DRIFTED_CHANNELS: "look at those channels' inputs, or re-estimate the statistics with --recalibrate",
}


@dataclass(frozen=True)
class AuditFinding:
    """One thing that is wrong with one BatchNorm, `module`; `numbers` are what `detail` says, for machines."""

    code: Code
    module: str
    detail: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        return self.code.remedy

    def to_dict(self) -> dict[str, Any]:
        return {
            "code": self.code.value,
            "module": self.module,
            "detail": self.detail,
            "numbers": dict(self.numbers),
            "remedy": self.remedy,
        }

    def __str__(self) -> str:
        return f"{self.module}: {self.code.value}: {self.detail}; {self.remedy}"


def codes(names: Sequence[str]) -> set[Code]:
    """The codes of these names. Raises `UsageError` for one that is none."""
    known = {code.value: code for code in Code}
    for name in names:
        if name not in known:
            raise UsageError(f"no finding has the code {name!r}; the codes are {', '.join(known)}")
    return {known[name] for name in names}


def lines(found: Sequence[AuditFinding]) -> Iterator[str]:
    """One line a code: where it was found, what was seen there first, and the remedy."""
    for code in dict.fromkeys(finding.code for finding in found):
        same = [finding for finding in found if finding.code is code]
        if len(same) == 1:
            yield str(same[0])
            continue
        more = f" and {len(same) - SHOWN} more" if len(same) > SHOWN else ""
        names = ", ".join(finding.module for finding in same[:SHOWN]) + more
        yield f"{code.value} in {len(same)} BatchNorms ({names}): {same[0].detail}; {code.remedy}"


def rejected(name: str, found: Sequence[AuditFinding]) -> RejectedError:
    """The error for a model that is not sound: its first finding, and how many more there are."""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return RejectedError(f"{name} is not sound: {found[0]}{more}; --allow {found[0].code.value} lets it pass")


def finite(value: float) -> float | None:
    """The number as JSON can hold it; None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None
