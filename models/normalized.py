"""Input normalisation as part of the model, so that it is folded into the first layer and nobody can forget it.

`conv(pad((x − mean) / std))` has no weights of its own form where the padding is zeros: in the raw image a zero stands
for `−mean / std`, and the shift would differ at the border. So the first convolutions repeat their edge instead: that
commutes with any affine, and the whole normalisation goes into their weights and biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


class Normalized(nn.Module):
    """`module((x − mean) / std)`: `(N, C, *positions)`, as the data is, → what `module` gives."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, *positions)` → the module's output."""
        out: Tensor = self.module((x - self.mean) / self.std)
        return out


def normalized(
    module: nn.Module, *, mean: Sequence[float], std: Sequence[float], input_shape: Sequence[int]
) -> Normalized:
    """The module behind a normalisation of its input; its first convolutions then pad with their edge, not zeros.

    `mean` and `std` hold one value per channel of `input_shape`, `(C, *positions)`. Raises `ValueError` where they do
    not, or a `std` is not above 0.
    """
    if not len(mean) == len(std) == input_shape[0] or not min(std) > 0:
        raise ValueError(f"normalize needs {input_shape[0]} means and stds above 0, got {list(mean)} and {list(std)}")
    for conv in _first_convolutions(module, input_shape):
        conv.padding_mode = "replicate"
    shape = (1, len(mean), *[1] * (len(input_shape) - 1))
    values = (torch.tensor(row, dtype=torch.float32).reshape(shape) for row in (mean, std))
    return Normalized(module, *values)


def _first_convolutions(module: nn.Module, input_shape: Sequence[int]) -> list[_ConvNd]:
    """The padded convolutions that read the input itself, found by running the module once in eval mode."""
    # The default device may be "meta", where this costs nothing.
    example = torch.zeros(2, *input_shape)
    found: list[_ConvNd] = []

    def look(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] is example and isinstance(part, _ConvNd) and any(part.padding):
            found.append(part)

    hooks = [part.register_forward_pre_hook(look) for part in module.modules() if isinstance(part, _ConvNd)]
    module.eval()
    try:
        with torch.no_grad():
            module(example)
    finally:
        module.train()
        for hook in hooks:
            hook.remove()
    return found
