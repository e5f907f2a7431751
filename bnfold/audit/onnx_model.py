"""An ONNX model under audit, folded by bnfold or not."""

from __future__ import annotations

import os
from dataclasses import dataclass

import onnx_ir as ir

from bnfold import io
from bnfold.audit import data as data_
from bnfold.audit.data import Data, Given
from bnfold.audit.findings import AuditFinding
from bnfold.audit.health import examine, health
from bnfold.audit.observe import observe, sites
from bnfold.audit.recalibrate import negate as opposite
from bnfold.audit.recalibrate import recalibrate
from bnfold.audit.subject import Progress, Scores, Seen, Subject
from bnfold.folding.frozen import Frozen, nodes, recorded


@dataclass
class OnnxSubject:
    """An ONNX model, run on `provider`; `external` keeps its weights beside it when it is written."""

    model: ir.Model
    provider: str
    external: bool = False

    @property
    def batch_norms(self) -> int:
        return sum(1 for _ in nodes(self.model)) + len(self._folded())

    def health(self) -> list[AuditFinding]:
        return health(self.model) + [finding for frozen in self._folded() for finding in examine(frozen)]

    def fit(self, given: Given) -> Data:
        return data_.for_model(self.model, given)

    def observe(self, data: Data, scores: Scores) -> Seen:
        found, hidden = sites(self.model)
        return Seen(found, observe(self.model, found, data, provider=self.provider, outputs=scores), hidden)

    def renewed(self, data: Data, progress: Progress, negate: bool) -> tuple[Subject, tuple[str, ...]]:
        copy = self.model.clone()
        if negate:
            opposite(copy)
        names = recalibrate(copy, data, provider=self.provider, progress=progress)
        return OnnxSubject(copy, self.provider, self.external), names

    def save(self, path: str | os.PathLike[str]) -> None:
        io.save(self.model, path, external=self.external or None)

    def _folded(self) -> list[Frozen]:
        """The BatchNorms that are no nodes any more."""
        standing = {node.name for node in nodes(self.model)}
        return [frozen for frozen in recorded(self.model) if frozen.name not in standing]
