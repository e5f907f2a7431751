"""Linear branches that become one convolution: the block of RepVGG, MobileOne and FastViT.

Each branch ends in BN. In training they differ; in inference their sum is one convolution, because convolution is
linear: a k×k branch is its own kernel, a 1×1 branch the middle tap, a BN of the input a diagonal middle tap. This is
the re-parameterization of Ding et al. 2021 (https://arxiv.org/abs/2101.03697), done in PyTorch source.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bnfold.models.style import PLAIN, Style


class Branches(nn.Module):
    """The sum of `copies` k×k convolutions, a 1×1 convolution where k > 1, and the input where the shape allows.

    Each has its own BN. `(N, inputs, H, W)` → `(N, outputs, ceil(H / stride), ceil(W / stride))`; `kernel` is odd.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        copies: int = 1,
        pointwise: bool = True,
        skip: bool = True,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        style.require_before("branches")
        self.shape = (inputs, outputs, kernel, stride, groups)
        kernels = [kernel] * copies + [1] * (pointwise and kernel > 1)
        self.convs = nn.ModuleList(style.conv(inputs, outputs, k, stride=stride, groups=groups) for k in kernels)
        self.skip = style.normalization(inputs) if skip and inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, outputs, H', W')`."""
        parts = [conv(x) for conv in self.convs] + ([] if self.skip is None else [self.skip(x)])
        total: Tensor = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """One convolution with a bias that equals the branches in eval mode."""
        inputs, outputs, kernel, stride, groups = self.shape
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
        weight, bias = torch.zeros(conv.weight.shape, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        for branch, norm in self.convs:
            scale, shift = _affine(norm)
            edge = (kernel - branch.kernel_size[0]) // 2
            weight += nn.functional.pad(branch.weight.double(), [edge] * 4) * scale[:, None, None, None]
            bias += shift
        if self.skip is not None:
            scale, shift = _affine(self.skip)
            rows = torch.arange(outputs)
            weight[rows, rows % (inputs // groups), kernel // 2, kernel // 2] += scale
            bias += shift
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return conv


def reparameterized(module: nn.Module) -> nn.Module:
    """A copy of the module in eval mode, every part that can be `merged` replaced by what it merges to."""
    result = copy.deepcopy(module)

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            replace(child)
            if hasattr(child, "merged"):
                setattr(parent, name, child.merged())

    replace(result)
    return result.eval()


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BN in eval mode, in float64; raises `ValueError` for another norm, which is not affine."""
    if not isinstance(norm, nn.BatchNorm2d):
        raise ValueError("branches merge only where their norm is batch")
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - scale * norm.running_mean.double()
