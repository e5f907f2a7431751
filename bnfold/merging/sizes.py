"""How large values are taken to be where the model leaves it open. Costs depend on it; no law does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from bnfold.graph import ASSUMED_SHAPE, Shape, annotate_graph, shape
from bnfold.graph.skeleton import inferred

# What a dynamic dimension is taken for; the leading one, the batch, for 1.
ASSUMED = 224


@dataclass
class Sizes:
    """The sizes of a model's values; `dims` gives dynamic dimensions by symbolic name or "input:axis"."""

    model: ir.Model
    dims: Mapping[str, int] = field(default_factory=dict)
    noted: bool = False

    def positions(self, value: ir.Value, axis: int) -> float:
        """How many values each channel has, `axis` being that of the channels."""
        known = shape(value)
        if known is None or not all(isinstance(size, int) for size in known):
            known = self._assumed(value) or known
        if known is None:
            return ASSUMED
        sizes = [size if isinstance(size, int) else ASSUMED if place else 1 for place, size in enumerate(known)]
        return math.prod(sizes) / max(1, sizes[axis])

    def _assumed(self, value: ir.Value) -> Shape | None:
        if not self.noted:  # most models have nothing to price, or no open size
            annotate_graph(self.model.graph, inferred(self.model, self._size), ASSUMED_SHAPE)
            self.noted = True
        found: Shape | None = value.meta.get(ASSUMED_SHAPE)
        return found

    def _size(self, name: str, axis: int, symbol: str) -> int:
        return self.dims.get(symbol) or self.dims.get(f"{name}:{axis}") or (ASSUMED if axis else 1)
