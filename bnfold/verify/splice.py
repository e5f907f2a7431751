"""Hybrids of two models: some windows as the candidate computes them, the others as the original does.

Which windows make the output differ is then a search: the smallest prefix of changed windows whose hybrid fails ends at
a faulty one, found in O(log n) runs without knowing anything about how the candidate was made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common

from bnfold.verify.windows import Window, Windows

# In the hybrid, names of the candidate's side.
PREFIX = "candidate/"


def spliced(windows: Windows, replaced: Collection[str]) -> ir.Model:
    """The original with the named windows as the candidate computes them.

    Both models share one graph; every reader of a shared value is given the side that was chosen for it.
    """
    original, candidate = (model.clone() for model in windows.models)
    twins = {str(theirs.name): str(ours.name) for theirs, ours in windows.pairing.twins.items()}
    theirs = _adopted(original.graph, candidate.graph)
    ours = {str(v.name): v for node in original.graph for v in node.outputs} | {
        str(v.name): v for v in original.graph.inputs
    }
    for name, mate in twins.items():
        value, other = theirs.get(name), ours.get(mate)
        if value is None or other is None:
            continue
        old, new = (other, value) if mate in replaced else (value, other)
        if old is not new:
            _redirected(original.graph, old, new)
    for value in original.graph.outputs:
        # An output keeps its name whichever side computes it.
        wanted = next((n for n in windows.outputs if f"{PREFIX}{n}" == value.name), None)
        if wanted is not None:
            ours[wanted].name, value.name = f"{PREFIX}unused/{wanted}", wanted
    common.RemoveUnusedNodesPass()(original)
    original.graph.sort()
    original.opset_imports.update({k: v for k, v in candidate.opset_imports.items() if k not in original.opset_imports})
    return original


def _adopted(target: ir.Graph, graph: ir.Graph) -> dict[str, ir.Value]:
    """Move another graph's nodes and initializers into `target` under new names; return its values by the old ones."""
    values = {str(v.name): v for node in graph for v in node.outputs if v.name}
    given = {str(v.name): v for v in graph.inputs}
    for value in list(graph.initializers.values()):
        if value in graph.inputs:
            graph.inputs.remove(value)
        del graph.initializers[str(value.name)]
        # To rename a value renames its tensor, which the user's model shares.
        value.const_value = _alias(value.const_value)
        value.name = f"{PREFIX}{value.name}"
        target.register_initializer(value)
    nodes = list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    for node in nodes:
        if node.name:
            node.name = f"{PREFIX}{node.name}"
        for value in node.outputs:
            if value.name:
                value.name = f"{PREFIX}{value.name}"
    target.extend(nodes)
    return values | given


def _alias(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """The same data under a name of its own."""
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)


def _redirected(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, new)
    for index, value in enumerate(graph.outputs):
        if value is old:
            new.type, new.shape = old.type, old.shape
            graph.outputs[index] = new


@dataclass
class Search:
    """Looks for the windows that make hybrids fail; `ratio` runs a hybrid and returns its error over its limit."""

    windows: Windows
    ratio: Callable[[ir.Model], float]
    runs: int = 0
    found: list[Window] = field(default_factory=list)

    def run(self, most: int = 8) -> list[Window]:
        """Return faulty windows in the original's order, at most `most`; empty where the whole candidate passes."""
        kept = [w.name for w in self.windows.changed]
        worst = self.measured(kept)
        while worst > 1.0 and kept and len(self.found) < most:
            low, high = 0, len(kept)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self.measured(kept[:middle]) > 1.0 else (middle, high)
            name = kept[high - 1]
            rest = [other for other in kept if other != name]
            better = self.measured(rest)
            if not better < worst:
                # Without it things are no better: the name has moved, and two wrongs made a right.
                self.windows = self.windows.wider({*self.windows.without, name})
                kept, self.found = [w.name for w in self.windows.changed], []
                worst = self.measured(kept)
                most -= 1
                continue
            self.found.append(self.windows.by_name[name])
            kept, worst = rest, better
        order = list(self.windows.by_name)
        return sorted(self.found, key=lambda w: order.index(w.name))

    def measured(self, names: Sequence[str]) -> float:
        self.runs += 1
        return self.ratio(spliced(self.windows, set(names)))
