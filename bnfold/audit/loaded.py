"""A PyTorch module under audit: where it comes from, what its inputs are called, and how it is written."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.audit import data as data_
from bnfold.audit.data import Data, Given
from bnfold.audit.findings import AuditFinding
from bnfold.audit.module import batch_norms, inspect_module, observe_module, recalibrate_module
from bnfold.audit.subject import Progress, Scores, Seen, Subject
from bnfold.errors import UsageError
from bnfold.models.modules import load_module


@dataclass
class ModuleSubject:
    """A module, and the checkpoint that it came from, whose form a recalibrated one keeps."""

    module: nn.Module
    checkpoint: str | None = None

    @staticmethod
    def load(source: Any, how: Mapping[str, Any]) -> ModuleSubject:
        """Take a module as it is, or load what `source` names; see `bnfold.export.export`."""
        if isinstance(source, nn.Module):
            if any(how.values()):
                raise UsageError("weights and kwargs belong to package.module:factory; this module is already built")
            return ModuleSubject(source)
        module, shape = load_module(source, **how)
        return ModuleSubject(module, None if shape is None else os.fspath(source))

    @property
    def batch_norms(self) -> int:
        return sum(1 for _ in batch_norms(self.module))

    def health(self) -> list[AuditFinding]:
        return inspect_module(self.module)

    def fit(self, given: Given) -> Data:
        parameters = inspect.signature(self.module.forward).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [p.name for p in parameters if p.default is p.empty and p.kind in positional]
        return data_.for_names(needed or ["input"], given)

    def observe(self, data: Data, scores: Scores) -> Seen:
        def outputs(out: Any) -> None:
            leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
            scores({str(index): leaf.detach().float().cpu().numpy() for index, leaf in enumerate(leaves)})

        return observe_module(self.module, data, outputs)

    def renewed(self, data: Data, progress: Progress, negate: bool) -> tuple[Subject, tuple[str, ...]]:
        if negate:
            raise UsageError("--negate changes the graph, and a checkpoint has none: export the model first")
        new = ModuleSubject(copy.deepcopy(self.module), self.checkpoint)
        names = tuple(site.frozen.name for site in observe_module(new.module, data).sites)
        recalibrate_module(new.module, data, names, progress)
        return new, names

    def save(self, path: str | os.PathLike[str]) -> None:
        if Path(path).suffix != ".safetensors":
            raise UsageError(f"{path}: a recalibrated PyTorch model is written as .safetensors; call it so")
        if self.checkpoint is not None:
            from bnfold.models.checkpoint import load_checkpoint, save_checkpoint

            save_checkpoint(self.module, load_checkpoint(self.checkpoint).meta, path)
        else:
            from bnfold.models.weights import write_weights

            write_weights(self.module, path)
