"""What folding did: every BatchNormalization with its route or reason, and the fold map in the model's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from bnfold import __version__, metadata
from bnfold.rules.base import Reason

if TYPE_CHECKING:
    from bnfold.merging.report import Merge

FOLD_MAP = "bnfold.fold_map"
FOLD_MAP_VERSION = 1
SOURCE_DIGEST = "bnfold.source"


@dataclass(frozen=True)
class Entry:
    """What became of one BatchNormalization: folded with its route, or kept with a reason."""

    node: str
    op: str
    channels: int | None
    status: Literal["folded", "kept"]
    judgement: Literal["hoist", "sink", "merge"] | None = None
    route: tuple[str, ...] = ()
    absorbers: tuple[str, ...] = ()
    reason: Reason | None = None
    blocking: str | None = None
    detail: str | None = None

    @property
    def hint(self) -> str | None:
        """What would let it be folded; None where it was."""
        return None if self.reason is None else self.reason.hint

    def to_dict(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "op": self.op,
            "channels": self.channels,
            "status": self.status,
            "judgement": self.judgement,
            "route": list(self.route),
            "absorbers": list(self.absorbers),
            "reason": None if self.reason is None else self.reason.code,
            "blocking": self.blocking,
            "detail": self.detail,
            "hint": self.hint,
        }


@dataclass(frozen=True)
class FoldReport:
    """Every BatchNormalization of a model in graph order, and how many other constant affines went."""

    entries: tuple[Entry, ...]
    affines: int
    frozen: int
    nodes_before: int
    nodes_after: int
    merges: tuple[Merge, ...] = ()

    @property
    def folded(self) -> int:
        return sum(entry.status == "folded" for entry in self.entries)

    @property
    def kept(self) -> int:
        return sum(entry.status == "kept" for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        return {
            "folded": self.folded,
            "kept": self.kept,
            "affines": self.affines,
            "frozen_initializers": self.frozen,
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "merges": [merge.to_dict() for merge in self.merges],
            "batch_norms": [entry.to_dict() for entry in self.entries],
        }

    def __str__(self) -> str:
        return f"{self.folded} BatchNormalization folded, {self.kept} kept; {self.affines} other affines absorbed"

    def followed_by(self, merges: tuple[Merge, ...], second: FoldReport | None) -> FoldReport:
        """Return one report of this, of merging, and of folding again what the merges uncovered."""
        known = tuple(merge for merge in self.merges if merge.into is not None)
        if second is None:
            return replace(self, merges=(*known, *merges))
        merged = {name: merge.into for merge in merges if merge.into is not None for name in merge.nodes}
        later = {entry.node: entry for entry in second.entries}

        def final(entry: Entry) -> Entry:
            if entry.status == "folded":
                return entry
            if entry.node in merged:
                into = merged[entry.node] or ""
                return Entry(entry.node, entry.op, entry.channels, "folded", "merge", (into,), (into,))
            return later.get(entry.node, entry)

        return replace(
            self, entries=tuple(final(entry) for entry in self.entries), nodes_after=second.nodes_after,
            affines=self.affines + second.affines, merges=(*known, *merges),
        )  # fmt: skip


def record(model: ir.Model, log: Sequence[dict[str, Any]]) -> None:
    """Add what was done to the fold map in the model's metadata; earlier runs' entries stay."""
    if not log:
        return
    try:
        earlier = (metadata.read(model, FOLD_MAP) or {}).get("folds", [])
    except (ValueError, AttributeError):
        earlier = []
    content = {"version": FOLD_MAP_VERSION, "bnfold": __version__, "folds": [*earlier, *log]}
    metadata.write(model, FOLD_MAP, content)
