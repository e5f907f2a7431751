"""Linear branches that become one convolution: the block of RepVGG, MobileOne and FastViT.

Each branch ends in BN. In training they differ; in inference their sum is one convolution, because convolution is
linear: a k×k branch is its own kernel, a 1×1 branch the middle tap, a BN of the input a diagonal middle tap. This is
the re-parameterization of Ding et al. 2021 (https://arxiv.org/abs/2101.03697), done in PyTorch source. Where BN is to
stand after the activation there is one of it, behind that of the sum, and the branches have biases instead.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bnfold.models.style import PLAIN, Activation, NoNorm, Style


class Branches(nn.Module):
    """The sum of `copies` k×k convolutions, a 1×1 convolution where k > 1, and the input where the shape allows.

    Each has its own BN; then comes the activation, if any. `(N, inputs, H, W)` → `(N, outputs, ceil(H / stride),
    ceil(W / stride))`; `kernel` is odd.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        activation: Activation | None = None,
        *,
        stride: int = 1,
        groups: int = 1,
        copies: int = 1,
        pointwise: bool = True,
        skip: bool = True,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        each = style.branch(activation)
        self.shape = (inputs, outputs, kernel, stride, groups)
        kernels = [kernel] * copies + [1] * (pointwise and kernel > 1)
        self.convs = nn.ModuleList(each.conv(inputs, outputs, k, stride=stride, groups=groups) for k in kernels)
        self.skip = each.normalization(inputs) if skip and inputs == outputs and stride == 1 else None
        if activation is None:
            self.tail = nn.Sequential()
        else:
            self.tail = nn.Sequential(activation()) if each is style else style.normed(outputs, activation)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, outputs, H', W')`."""
        parts = [conv(x) for conv in self.convs] + ([] if self.skip is None else [self.skip(x)])
        total: Tensor = parts[0]
        for part in parts[1:]:
            total = total + part
        out: Tensor = self.tail(total)
        return out

    @torch.no_grad()
    def merged(self) -> nn.Sequential:
        """One convolution with a bias that equals the branches in eval mode, and what stands behind their sum."""
        inputs, outputs, kernel, stride, groups = self.shape
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
        weight, bias = torch.zeros(conv.weight.shape, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        for branch, norm in self.convs:
            scale, shift = affine(norm, outputs)
            edge = (kernel - branch.kernel_size[0]) // 2
            weight += nn.functional.pad(branch.weight.double(), [edge] * 4) * scale[:, None, None, None]
            bias += shift + (0 if branch.bias is None else scale * branch.bias.double())
        if self.skip is not None:
            scale, shift = affine(self.skip, outputs)
            rows = torch.arange(outputs)
            weight[rows, rows % (inputs // groups), kernel // 2, kernel // 2] += scale
            bias += shift
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return nn.Sequential(conv, *self.tail)


def reparameterized(module: nn.Module) -> nn.Module:
    """A copy of the module in eval mode, every part that can be `merged` replaced by what it merges to."""
    result = copy.deepcopy(module)

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if hasattr(child, "merged"):
                setattr(parent, name, child.merged())
            else:
                replace(child)

    replace(result)
    return result.eval()


def affine(norm: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BN in eval mode, or of none, in float64; raises `ValueError` for what is not affine."""
    if isinstance(norm, NoNorm):
        return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    if not isinstance(norm, nn.BatchNorm2d):
        raise ValueError("branches merge only where their norm is batch or none")
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - scale * norm.running_mean.double()
