"""What can be audited: anything with BatchNorms that can be examined, run on data, and given the data's statistics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bnfold.arrays import Array
from bnfold.audit.data import Data, Given
from bnfold.audit.findings import AuditFinding
from bnfold.audit.moments import Moments
from bnfold.audit.observe import Outputs, Site, Unobserved
from bnfold.errors import InputError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """What the data showed: the `moments` at each of the `sites`, the BatchNorms without one, and what else was found.
    """

    sites: Sequence[Site]
    moments: Sequence[Moments]
    unobserved: Sequence[Unobserved] = ()
    findings: Sequence[AuditFinding] = ()

    def pairs(self) -> Iterator[tuple[Site, Moments]]:
        """Each site and what was seen there."""
        return zip(self.sites, self.moments, strict=True)


@dataclass
class Scores:
    """Predicted classes of the first output that holds scores for the data's labels `(N, …)`: it is `(N, …, K)`."""

    data: Data
    classes: list[Array] = field(default_factory=list)

    def __call__(self, outputs: Outputs) -> None:
        """Take in the outputs of one batch; a row that holds NaN predicts nothing."""
        for array in outputs.values():
            if self._are_scores(array):
                wide = array.astype(np.float32)
                self.classes.append(np.where(np.isnan(wide).any(-1), -1, np.nan_to_num(wide).argmax(-1)))
                return

    def _are_scores(self, array: Array) -> bool:
        labels = self.data.labels
        if labels is None or array.ndim < 2 or array.dtype.kind not in "fV":
            return False
        return array.shape[1:-1] == labels.shape[1:] and array.shape[-1] > max(1, labels.max())

    @property
    def accuracy(self) -> float | None:
        """The share of right predictions; None without labels. Raises `InputError` without scores for them."""
        labels = self.data.labels
        if labels is None:
            return None
        found = np.concatenate(self.classes) if self.classes else np.zeros(0)
        if len(found) != self.data.used or labels.min() < 0:
            what = f"labels {labels.shape} from {labels.min()} to {labels.max()}"
            hint = "give (N, …) where the scores are (N, …, classes), from 0, or leave them out"
            raise InputError(f"{self.data.where}: no output has scores for the {what}; {hint}")
        return float(np.mean(found == labels[: self.data.used]))


class Subject(Protocol):
    """A model under audit: an ONNX one (`onnx_model`) or a PyTorch module (`loaded`)."""

    @property
    def batch_norms(self) -> int:
        """How many BatchNorms it has, or had before folding."""
        ...

    def health(self) -> list[AuditFinding]:
        """What is unsound about its numbers alone."""
        ...

    def fit(self, given: Given) -> Data:
        """The data as its inputs. Raises `InputError` where it does not fit."""
        ...

    def observe(self, data: Data, scores: Scores) -> Seen:
        """Run the data through it; `scores` is told the outputs."""
        ...

    def renewed(self, data: Data, progress: Progress, negate: bool) -> tuple[Subject, tuple[str, ...]]:
        """A copy with the statistics of the data, and the names of the BatchNorms that have them.

        With `negate` it takes the input with the opposite sign. Raises `UsageError` where that can't be.
        """
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all."""
        ...
