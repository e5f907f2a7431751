"""FastViT's convolutional stages: RepMixer token mixing (Vasu et al. 2023, https://arxiv.org/abs/2303.14189)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.branches import Branches, affine, reparameterized
from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class RepMixer(nn.Module):
    """`x + scale · (mixer(x) − norm(x))`: depthwise branches less a BN, a layer scale per channel, and the input.

    `(N, width, H, W)` → the same. In inference it is one depthwise convolution.
    """

    def __init__(self, width: int, kernel: int = 3, style: Style = PLAIN) -> None:
        super().__init__()
        self.mixer = Branches(width, width, kernel, groups=width, style=style)
        self.norm = style.normalization(width)
        self.scale = nn.Parameter(0.1 * torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, width, H, W)` → the same."""
        return x + self.scale * (self.mixer(x) - self.norm(x))

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """One depthwise convolution with a bias that equals this in eval mode."""
        conv, scale = self.mixer.merged()[0], self.scale.double()
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        gain, shift = affine(self.norm, len(scale))
        middle = conv.kernel_size[0] // 2
        weight = conv.weight.double()
        weight[:, 0, middle, middle] -= gain
        weight *= scale[:, None]
        weight[:, 0, middle, middle] += 1.0
        conv.weight.copy_(weight)
        conv.bias.copy_(scale.reshape(-1) * (conv.bias.double() - shift))
        return conv


class ConvFFN(nn.Module):
    """`x + scale · conv1×1(gelu(conv1×1(bn(conv7×7(x)))))`, the 7×7 depthwise: `(N, width, H, W)` → the same."""

    def __init__(self, width: int, expand: int, style: Style = PLAIN) -> None:
        super().__init__()
        self.conv = style.conv(width, width, 7, groups=width)
        self.fc1 = nn.Conv2d(width, expand * width, 1)
        self.fc2 = nn.Conv2d(expand * width, width, 1)
        self.scale = nn.Parameter(0.1 * torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, width, H, W)` → the same."""
        return x + self.scale * self.fc2(nn.functional.gelu(self.fc1(self.conv(x))))


class FastViT(nn.Module):
    """A FastViT-style classifier of its convolutional stages: stem, RepMixer blocks, downsampling, pool, head.

    `(N, C, H, W)` → logits `(N, classes)`. Stage i has `blocks[i]` blocks (RepMixer, ConvFFN) of `width · 2^i`
    channels; between stages a depthwise sum of a 7×7 and a 1×1 with stride 2 and a pointwise one, and the stem has
    `stem_stride`. Defaults: 15 BNs. Raises `ValueError` where `input_shape` is not `(C, H, W)`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        width: int = 16,
        blocks: Sequence[int] = (1, 1),
        expand: int = 3,
        stem_stride: int = 1,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        self.stem = Branches(image_shape(input_shape)[0], width, 3, nn.GELU, stride=stem_stride, style=style)
        stages: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(blocks):
            outputs = width * 2**stage
            if stage:
                stages.append(Branches(inputs, inputs, 7, nn.GELU, stride=2, groups=inputs, style=style))
                stages.append(Branches(inputs, outputs, 1, nn.GELU, style=style))
            for _ in range(depth):
                stages += [RepMixer(outputs, style=style), ConvFFN(outputs, expand, style)]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = style.head(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits

    def reparameterized(self) -> nn.Module:
        """The same net in eval mode with one convolution where there were branches."""
        return reparameterized(self)
