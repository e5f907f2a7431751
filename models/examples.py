"""Example inputs to trace a module with, given as tensors, arrays or text, and what the module does with them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import InputError, ModelError, UsageError
from bnfold.models.weights import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    Example = torch.Tensor | npt.NDArray[np.generic] | str
    Inputs = Example | Sequence[Example] | Mapping[str, Example]

_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_][\w.]*):)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")


def examples(inputs: Inputs, module: nn.Module, *, label: str, batch: bool) -> dict[str, torch.Tensor]:
    """Example inputs by ONNX name, in forward's order, on the module's device.

    With `batch` a batch of one becomes a batch of two. Raises `InputError` where forward takes another number of
    inputs (`label` names the model), `UsageError` for two of one name.
    """
    import torch

    named = dict(inputs) if isinstance(inputs, Mapping) else None
    values = list(named.values()) if named is not None else inputs
    if isinstance(values, (str, torch.Tensor, np.ndarray)):
        values = [values]
    keys: list[str | None] = list(named) if named is not None else [None] * len(values)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    tensors: list[torch.Tensor] = []
    for i, value in enumerate(values):
        if isinstance(value, str):
            name, tensor = parse_input(value)
            keys[i] = keys[i] or name
        else:
            tensor = torch.as_tensor(value)
        tensors.append(tensor.detach().to(device))
    arguments = _arguments(module, tensors, label)
    if batch and tensors and tensors[0].ndim and tensors[0].shape[0] == 1:
        # Exporters take a size of 1 for a constant, since it broadcasts.
        tensors = [t.repeat(2, *[1] * (t.ndim - 1)) if t.ndim and t.shape[0] == 1 else t for t in tensors]
    names = [key or ("input" if len(tensors) == 1 else argument) for key, argument in zip(keys, arguments, strict=True)]
    if len(set(names)) < len(names):
        raise UsageError(f"the inputs are called {', '.join(names)}; give each a name of its own")
    return dict(zip(names, tensors, strict=True))


def parse_input(text: str) -> tuple[str | None, torch.Tensor]:
    """The name, if any, and a seeded example for `"[NAME:]1x3x224x224[:DTYPE]"`, DTYPE being torch's name.

    Floating-point examples are standard normal, others zero. Raises `UsageError` for anything else.

    >>> parse_input("pixels:1x3x8x8")[1].shape  # doctest: +SKIP
    torch.Size([1, 3, 8, 8])
    """
    import torch

    match = _SPEC.fullmatch(text.strip())
    dtype = getattr(torch, match["dtype"] or "float32", None) if match else None
    if match is None or not isinstance(dtype, torch.dtype):
        raise UsageError(
            f"can't read the input {text!r}; write [NAME:]SHAPE[:DTYPE], such as 1x3x224x224 or ids:1x16:int64"
        )
    shape = [int(size) for size in match["shape"].split("x")]
    try:
        if dtype.is_floating_point:
            return match["name"], torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        return match["name"], torch.zeros(shape, dtype=dtype)
    except (RuntimeError, TypeError, MemoryError) as error:
        # torch says by the first two that a size is beyond it.
        raise UsageError(f"can't make an input of {text!r}: there is no memory for it; give a smaller one") from error


def run(module: nn.Module, examples: dict[str, torch.Tensor], label: str) -> tuple[list[str] | None, int]:
    """Run the module once: the names of its outputs, and how often it normalises by frozen statistics.

    The names are None where an output is no tensor. Raises `InputError` where the module fails on these inputs,
    `ModelError` where it normalises by the batch's statistics.
    """
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode
    from torch.utils import _pytree as pytree

    calls = {True: 0, False: 0}

    class Count(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            # functional's and torch's own differ in their arguments, but `training` is the sixth of both.
            if func in (functional.batch_norm, torch.batch_norm):
                calls[bool(args[5] if len(args) > 5 else kwargs.get("training"))] += 1
            return func(*args, **kwargs)

    try:
        with Count():
            out = module(*examples.values())
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in examples.items())
        raise InputError(f"{label}: fails on {shapes}: {first_line(error)}") from error
    if calls[True]:
        raise ModelError(
            f"{label}: {calls[True]} batch norms use the batch's statistics in eval mode; freeze them first"
        )
    leaves = pytree.tree_leaves(out)
    if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return None, calls[False]
    names = ["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]
    if isinstance(out, dict) and len(out) == len(leaves) and not examples.keys() & out.keys():
        names = [str(key) for key in out]
    return names, calls[False]


def sharing_batch(examples: dict[str, torch.Tensor]) -> set[str]:
    """The inputs whose first axis is the batch."""
    first = next(iter(examples.values()), None)
    if first is None or not first.ndim:
        return set()
    return {name for name, tensor in examples.items() if tensor.ndim and tensor.shape[0] == first.shape[0]}


def follow_batch(
    module: nn.Module, examples: dict[str, torch.Tensor], batched: set[str], outputs: Sequence[str], label: str
) -> set[str]:
    """The `outputs` whose first axis grows by one when the `batched` inputs do.

    Raises `ModelError` where the module fails on the larger batch: tracing would freeze the size without a word.
    """
    import torch
    from torch.utils import _pytree as pytree

    more = [torch.cat((t, t[:1])) if name in batched else t for name, t in examples.items()]
    few = pytree.tree_leaves(module(*examples.values()))
    try:
        many = pytree.tree_leaves(module(*more))
    except Exception as error:
        raise ModelError(
            f"{label}: can't take another batch size ({first_line(error)}); export with --static-batch"
        ) from error
    return {
        name
        for name, one, other in zip(outputs, few, many, strict=False)
        if one.ndim and other.ndim and other.shape[0] == one.shape[0] + 1
    }


def _arguments(module: nn.Module, tensors: Sequence[torch.Tensor], label: str) -> list[str]:
    """The names of forward's parameters that the tensors are passed to."""
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*tensors).arguments
    except TypeError as error:
        raise InputError(f"{label}: {error}; forward takes {', '.join(signature.parameters) or 'nothing'}") from None
    names: list[str] = []
    for name, value in bound.items():
        names += [f"{name}_{i}" for i in range(len(value))] if isinstance(value, tuple) else [name]
    return names
