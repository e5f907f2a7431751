"""A PyTorch module as the reference: run in float64 for y, with perturbed parameters for S, as it is for o."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.inputs import feeds
from bnfold.verify.kernels.base import Unsupported
from bnfold.verify.reference import Observer
from bnfold.verify.sides import Exact, Run

if TYPE_CHECKING:
    from torch import nn

# PyTorch's types by their names, and the unit roundoff of each.
UNITS = {"torch.float64": 2.0**-53, "torch.float32": 2.0**-24, "torch.float16": 2.0**-11, "torch.bfloat16": 2.0**-8}


def as_reference(source: Any, candidate: ir.Model) -> TorchReference | None:
    """Return a reference if `source` is a PyTorch module; torch is not imported to find that it is none."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        return None
    return TorchReference(source, candidate)


@dataclass
class TorchReference:
    """A module in eval mode, fed with the candidate's inputs in their order; it is copied, never changed.

    Its outputs, flattened, are the candidate's by position.
    """

    module: nn.Module
    candidate: ir.Model
    constant: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module = copy.deepcopy(self.module).cpu().eval()
        kinds = {str(p.dtype) for p in self.module.parameters()}
        self.unit = max((UNITS[kind] for kind in kinds if kind in UNITS), default=2.0**-24)
        self.inputs = [str(v.name) for v in feeds.inputs(self.candidate)]
        self.outputs = [str(v.name) for v in self.candidate.graph.outputs]

    def exact(self) -> Exact:
        return _Module(copy.deepcopy(self.module).double(), self, double=True)

    def perturbed(self, seed: int) -> Exact:
        import torch

        module = copy.deepcopy(self.module).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0
                    tensor.mul_(1.0 + self.unit * noise)
        return _Module(module, self, double=True)

    def session(self, provider: str, *, gate: bool, strict: bool) -> Run:
        """The module itself on the CPU, whatever the candidate's provider: the two are held against y alone."""
        return _Module(self.module, self, double=False)


@dataclass
class _Module:
    """A module called with arrays by the candidate's names."""

    module: nn.Module
    side: TorchReference
    double: bool
    # A module may keep something from one call to the next, and PyTorch uses all cores by itself.
    peak: int = 0

    def __call__(self, fed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return self.run(fed)
        except Unsupported as error:
            raise runtime.RunError(str(error)) from error

    def run(self, fed: Mapping[str, Array], observe: Observer | None = None) -> dict[str, Array]:
        """Run the module once; `observe` sees nothing of its inside."""
        return self.runs([fed])[0]

    def runs(self, feeds: Sequence[Mapping[str, Array]], observe: Observer | None = None) -> list[dict[str, Array]]:
        """Run the module on one set of inputs after the other."""
        return [self._run(fed) for fed in feeds]

    def _run(self, fed: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(fed[name])) for name in self.side.inputs]
        if self.double:
            tensors = [t.double() if t.is_floating_point() else t for t in tensors]
        try:
            with torch.no_grad():
                result = list(_flat(self.module(*tensors)))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise Unsupported(f"the module with these inputs: {' '.join(str(error).split())[:200]}") from error
        if len(result) != len(self.side.outputs):
            raise Unsupported(f"the module gives {len(result)} outputs, the model {len(self.side.outputs)}")
        return {name: tensor.numpy() for name, tensor in zip(self.side.outputs, result, strict=True)}


def _flat(result: Any) -> Any:
    import torch

    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _flat(value)
    elif isinstance(result, (list, tuple)):
        for value in result:
            yield from _flat(value)
