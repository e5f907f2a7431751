"""Where a BatchNorm of an ONNX model can be observed, folded or not, and what passes there.

A BatchNorm that is still a node is observed at its input x. One that was folded is observed at x if a value of that
name is left, else at y, whose name went to the value that equals it: x = (y − beta)/scale + mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnfold import runtime
from bnfold.arrays import Array, Float64
from bnfold.audit.data import Data
from bnfold.audit.health import Mask, dead_gamma
from bnfold.audit.moments import Moments
from bnfold.errors import ModelError
from bnfold.folding.frozen import Frozen, frozen_nodes, recorded
from bnfold.graph import annotate, dtype, label, shape

Side = Literal["x", "y"]
Outputs = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Site:
    """A BatchNorm and the value at which it is observed: `side` x, its input, or y, its output.

    `live` `(C,)` marks the channels that can be seen there; `relu` says that ReLUs alone read y.
    """

    frozen: Frozen
    value: str
    side: Side
    live: Mask
    relu: bool

    def moments(self) -> Moments:
        """Nothing seen yet, around what is expected at the value."""
        centre = self.frozen.mean if self.side == "x" else self.frozen.beta
        return Moments(np.where(np.isfinite(centre), centre, 0.0))

    def at_input(self, seen: Moments) -> Moments:
        """What was seen at the value, as moments of x."""
        if self.side == "x":
            return seen
        factor = np.where(self.live, 1.0 / np.where(self.live, self.frozen.scale, 1.0), 0.0)
        return seen.scaled(factor, self.frozen.mean)

    def highest_output(self, seen: Moments) -> Float64:
        """`(C,)`: the largest y that was seen."""
        if self.side == "y":
            return seen.highest
        with np.errstate(invalid="ignore"):
            ends = self.frozen.scale * (np.stack([seen.lowest, seen.highest]) - self.frozen.mean) + self.frozen.beta
        return np.asarray(ends.max(0))


@dataclass(frozen=True)
class Unobserved:
    """A BatchNorm that no value shows, and why."""

    name: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "reason": self.reason}


def sites(model: ir.Model) -> tuple[list[Site], list[Unobserved]]:
    """Every BatchNorm of the model: where it is observed, or why it is not."""
    annotate(model)
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    found: list[Site | Unobserved] = []
    here = set()
    for node, frozen in frozen_nodes(model):
        here.add(label(node))
        if frozen is None:
            found.append(Unobserved(label(node), "its statistics are computed at run time"))
        elif node.graph is not model.graph:
            found.append(Unobserved(label(node), "it is inside a control-flow body"))
        else:
            found.append(Site(frozen, frozen.input, "x", np.ones(frozen.channels, bool), _feeds_relu(node.outputs[0])))
    found += [_folded(frozen, values) for frozen in recorded(model) if frozen.name not in here]
    shown = [site for site in found if isinstance(site, Site)]
    return shown, [site for site in found if isinstance(site, Unobserved)]


def _folded(frozen: Frozen, values: Mapping[str | None, ir.Value]) -> Site | Unobserved:
    source, target = values.get(frozen.input), values.get(frozen.output)
    everywhere = np.ones(frozen.channels, bool)
    if source is not None and _fits(source, frozen):
        # Where the BatchNorm went into its readers, ReLU can't be one of them.
        return Site(frozen, frozen.input, "x", everywhere, False)
    if target is None or not _fits(target, frozen):
        return Unobserved(frozen.name, "merged with other layers: no value is its input or its output any more")
    live = ~dead_gamma(frozen.gamma)
    if not live.any():
        return Unobserved(frozen.name, "gamma is 0, so that its folded output says nothing of its input")
    return Site(frozen, frozen.output, "y", live, _feeds_relu(target))


def _fits(value: ir.Value, frozen: Frozen) -> bool:
    sizes = shape(value)
    return sizes is None or (len(sizes) > 1 and (not isinstance(sizes[1], int) or sizes[1] == frozen.channels))


def _feeds_relu(value: ir.Value) -> bool:
    uses = value.uses()
    return bool(uses) and not value.is_graph_output() and all(use.node.op_type == "Relu" for use in uses)


def observe(
    model: ir.Model,
    watched: Sequence[Site],
    data: Data,
    *,
    only: bool = False,
    provider: str = "cpu",
    outputs: Callable[[Outputs], None] = lambda outputs: None,
) -> list[Moments]:
    """Run the data through the model and return what was seen at each site, in order.

    `outputs` is told the model's outputs of every batch; with `only`, nothing but what the sites need is computed.
    """
    own = [] if only else [str(value.name) for value in model.graph.outputs]
    model = tapped(model, watched, only)
    # Where a BatchNorm reads an input of the model there may be nothing to compute, which a session refuses.
    session = runtime.session(model, provider, optimize=False) if model.graph.outputs else None
    seen = [site.moments() for site in watched]
    for batch in data.batches():
        found = runtime.run(session, batch.feeds) if session is not None else {}
        for site, moments in zip(watched, seen, strict=True):
            array = found[site.value] if site.value in found else batch.feeds[site.value]
            if array.ndim < 2 or array.shape[1] != site.frozen.channels:
                raise ModelError(f"{site.frozen.name}: {site.value!r} has shape {array.shape}, not its channels")
            moments.add(array, batch.examples)
            batch.weight += array.nbytes
        outputs({name: found[name] for name in own})
    return seen


def tapped(model: ir.Model, watched: Sequence[Site], only: bool) -> ir.Model:
    """A copy of the model that also returns the values at the sites."""
    copy = model.clone()
    annotate(copy)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    if only:
        copy.graph.outputs.clear()
    for name in dict.fromkeys(site.value for site in watched):
        value = values.get(name)
        if value is not None and value not in copy.graph.outputs:
            value.type = ir.TensorType(dtype(value) or ir.DataType.FLOAT)
            copy.graph.outputs.append(value)
    if only:
        RemoveUnusedNodesPass()(copy)
    return copy
