"""What is expected of every registered architecture: its shapes, its BNs, and how many of them fold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.models import registry


@dataclass(frozen=True)
class Expected:
    """The shape of one output, and the BNs: how many there are and how many fold."""

    output: tuple[int, ...]
    batchnorms: int
    folded: int


ARCHITECTURES = {
    "mlp": Expected((10,), 2, 2),
    "lenet": Expected((10,), 4, 4),
    "resnet": Expected((10,), 9, 9),
    "preact": Expected((10,), 7, 6),  # the first: its input is also the shortcut
    "mobilenet": Expected((10,), 14, 14),
    "mobilenetv3": Expected((10,), 14, 14),
    "densenet": Expected((10,), 14, 6),  # those whose input is concatenated again
    "inception": Expected((10,), 15, 15),
    "repvgg": Expected((10,), 9, 9),
    "mobileone": Expected((10,), 19, 19),
    "fastvit": Expected((10,), 15, 15),
    "levit": Expected((10,), 11, 11),
    "unet": Expected((1, 8, 8), 12, 12),
    "autoencoder": Expected((1, 8, 8), 4, 4),
    "dcgan": Expected((1, 8, 8), 2, 2),
    "pointnet": Expected((10,), 4, 4),
    "crnn": Expected((3, 10), 4, 4),
    "ssd": Expected((90, 15), 5, 5),
}


BEHIND = {"repvgg": 4, "mobileone": 7, "fastvit": 13}
"""BNs behind the activation, where that is another number: of a sum of branches only one is left."""


def batch_norms(module: nn.Module) -> int:
    return sum(isinstance(part, _BatchNorm) for part in module.modules())


def example(arch: str, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """A seeded batch of what the architecture takes by default."""
    shape = registry.architecture(arch).input_shape()
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, its statistics, gammas and betas far from 1 and 0, gammas of both signs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, _BatchNorm) and part.running_mean is not None and part.affine:
                assert part.running_var is not None
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
                part.weight.normal_(generator=generator)
                part.bias.normal_(generator=generator)
    return module.eval()
