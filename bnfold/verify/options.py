"""How a verification is to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnfold.errors import UsageError
from bnfold.providers import short
from bnfold.verify.levels import chosen

# The layers are checked on one sample of each of these kinds: their faults show at once where they are.
LOCAL_KINDS = ("normal", "mixed", "impulses")
QUICK_SAMPLES = 4


@dataclass(frozen=True)
class Options:
    """How to verify; see `bnfold.verify.verify` for what each means."""

    providers: Sequence[str] = ("cpu",)
    inputs: Any = None
    seed: int = 0
    samples: int = 16
    dims: Mapping[str, int] | None = None
    rtol: float | None = None
    atol: float | None = None
    expect_folds: int | None = None
    levels: Sequence[str] | None = None
    quick: bool = False
    keep_going: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if not self.providers:
            raise UsageError("name at least one provider to verify on")
        for name, limit in (("rtol", self.rtol), ("atol", self.atol)):
            # Nothing exceeds a limit that is not a number, so it would be no limit.
            if limit is not None and not limit >= 0.0:
                raise UsageError(f"{name} is {limit}; it must be a number from 0")
        object.__setattr__(self, "providers", tuple(dict.fromkeys(short(name) for name in self.providers)))
        for provider in self.providers:
            chosen(self.levels, provider)

    @property
    def drawn(self) -> int:
        """How many samples are drawn: a quick look takes a few."""
        return min(self.samples, QUICK_SAMPLES) if self.quick else self.samples

    @property
    def noise_runs(self) -> int:
        return 1 if self.quick else 3

    @property
    def local_samples(self) -> int:
        return 1 if self.quick else len(LOCAL_KINDS)
