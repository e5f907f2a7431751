"""Is the exported model the module? Held against PyTorch itself, by the rule of `bnfold verify`.

y is the module in float64, o the module as it is, c the ONNX model on ONNX Runtime's CPU provider with its
optimizations off, and S how much y moves when every weight moves by its unit roundoff (see `bnfold.verify.compare`).
The inputs are the examples, others of the same kind, and other sizes for every free axis: one that tracing froze shows
there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.errors import ModelError, RejectedError
from bnfold.exporting.dynamic import BATCH, Axes
from bnfold.models.weights import first_line
from bnfold.verify.compare import Noises, measure

Tensors = Mapping[str, Tensor]
Arrays = list[Array]

RUNS = 3
"""Evaluations with perturbed weights."""


@dataclass(frozen=True)
class Proof:
    """The worst error over all outputs and samples as a share of its limit, or why nothing could be said."""

    ratio: float
    samples: int
    doubt: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "samples": self.samples, "doubt": self.doubt}

    def __str__(self) -> str:
        if self.doubt is not None:
            return f"not verified against the module: {self.doubt}"
        return f"verified against the module: worst error {self.ratio:.2g} of the limit on {self.samples} inputs"


def prove(model: ir.Model, module: nn.Module, examples: Tensors, axes: Axes, label: str) -> Proof:
    """Compare the exported model with the module, which is in eval mode.

    Raises `RejectedError` where they differ by more than rounding explains.
    """
    doubt = _unrepeatable(module, examples)
    if doubt is not None:
        return Proof(0.0, 0, doubt)
    # Sizes that the module does not take are not compared.
    taken = [(sample, o) for sample in _samples(examples, axes) if (o := _outputs(module, sample)) is not None]
    samples, own = [sample for sample, _ in taken], [o for _, o in taken]
    try:
        given = _exported(model, samples, label)
    except ModelError as error:
        return Proof(0.0, 0, f"{error}")
    try:
        exact, *changed = _in_float64(module, samples, own)
    except Exception as error:
        return Proof(0.0, 0, f"it can't be copied in float64 ({first_line(error)})")
    names = [str(value.name) for value in model.graph.outputs]
    worst = max(
        _held(y, o, c, z, names, sample, label)
        for sample, o, c, y, *z in zip(samples, own, given, exact, *changed, strict=True)
    )
    return Proof(worst, len(samples))


def _exported(model: ir.Model, samples: Sequence[Tensors], label: str) -> list[Arrays]:
    """What the exported model computes of each sample. Raises `ModelError` where no session can be made of it."""
    session = runtime.session(model, optimize=False)
    try:
        feeds = [{name: _array(tensor) for name, tensor in sample.items()} for sample in samples]
        return [list(runtime.run(session, feed).values()) for feed in feeds]
    except ModelError as error:
        raise RejectedError(f"{label}: the exported model fails where the module does not: {error}") from error


def _in_float64(module: nn.Module, samples: Sequence[Tensors], own: Sequence[Arrays]) -> list[list[Arrays]]:
    """What the module computes of each sample in float64, and `RUNS` times with perturbed weights.

    One copy serves them all, since a module may be large; where it does not take float64 its `own` outputs stand in.
    """
    part = _exact(module)
    found = []
    for seed in (None, *range(RUNS)):
        if seed is not None:
            _perturb(part, module, seed)
        wide = [{n: t.double() if t.is_floating_point() else t for n, t in sample.items()} for sample in samples]
        found.append([
            _outputs(part, w) or _outputs(part, sample) or o for w, sample, o in zip(wide, samples, own, strict=True)
        ])  # fmt: skip
    return found


def _held(
    y: Arrays, o: Arrays, c: Arrays, changed: Sequence[Arrays], names: Sequence[str], sample: Tensors, label: str
) -> float:
    """The worst ratio over the outputs; raises `RejectedError` where one is beyond its limit."""
    worst = 0.0
    sizes = ", ".join(f"{name} {'×'.join(map(str, tensor.shape)) or 'scalar'}" for name, tensor in sample.items())
    for index, (exact, own, given) in enumerate(zip(y, o, c, strict=True)):
        noise = None
        if exact.shape == own.shape and exact.dtype.kind in "fV":
            with np.errstate(invalid="ignore", over="ignore"):
                error = (own.astype(np.float64) - exact) ** 2
                change = sum(((z[index] - exact) ** 2 for z in changed), np.zeros(exact.shape))
            noise = Noises(change.ravel(), len(changed), error.ravel(), 1)
        found = measure(exact, own, given, noise, [z[index] for z in changed])
        if found.mismatch is not None or found.ratio > 1.0:
            what = found.mismatch or f"error {found.error:.2g}, {found.ratio:.3g} times what rounding explains"
            where = f"output {names[index]!r} on {sizes}"
            raise RejectedError(f"{label}: the exported model is not the module: {where}: {what}")
        worst = max(worst, found.ratio)
    return worst


def _samples(examples: Tensors, axes: Axes) -> Iterator[Tensors]:
    """The examples, two more of their kind, and those with every free axis of another size."""
    yield examples
    generator = torch.Generator().manual_seed(1)

    def drawn(tensor: Tensor, shape: Sequence[int]) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(*shape, generator=generator).to(tensor)
        # Other integers may be no indices at all: rows of the given ones, again.
        for axis, size in enumerate(shape):
            tensor = tensor.index_select(axis, torch.arange(size, device=tensor.device) % tensor.shape[axis])
        return tensor

    yield {name: drawn(tensor, tensor.shape) for name, tensor in examples.items()}
    dims = sorted({dim for places in axes.values() for dim in places.values()})
    for dim in dims:
        for times, plus in ((1, 1), (0, 1) if dim == BATCH else (2, 0)):
            yield {
                name: drawn(t, [
                    times * size + plus if axes.get(name, {}).get(axis) == dim else size
                    for axis, size in enumerate(t.shape)
                ])
                for name, t in examples.items()
            }  # fmt: skip


def _outputs(module: nn.Module, sample: Tensors) -> Arrays | None:
    """The module's outputs, flat; None where it does not take the sample."""
    try:
        leaves = pytree.tree_leaves(module(*sample.values()))
    except Exception:  # a module may raise anything
        return None
    return [_array(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


def _exact(module: nn.Module) -> nn.Module:
    """A copy in float64, with every epsilon rounded as ONNX stores it."""
    result = copy.deepcopy(module).double()
    for part in result.modules():
        epsilon: object = getattr(part, "eps", None)
        if isinstance(epsilon, float):
            setattr(part, "eps", float(np.float32(epsilon)))  # noqa: B010
    return result


def _perturb(part: nn.Module, module: nn.Module, seed: int) -> None:
    """Give the copy the module's weights, each off by a random share of the unit roundoff that it is stored with."""
    generator = torch.Generator().manual_seed(seed)
    stored = module.state_dict()
    part.load_state_dict(stored)
    with torch.no_grad():
        for name, tensor in part.state_dict().items():
            if tensor.is_floating_point():
                unit = torch.finfo(stored[name].dtype).eps / 2
                draw = 2 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) - 1
                tensor.mul_(draw.mul_(unit).add_(1).to(tensor.device))


def _unrepeatable(module: nn.Module, examples: Tensors) -> str | None:
    one, other = (_outputs(module, examples) for _ in range(2))
    if one is None or other is None:
        return "it fails on its example"
    if any(not np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, other, strict=True)):
        return "it gives another result each time"
    return None
