"""BN over the batches of all processes, where torch has none: its `SyncBatchNorm` runs on GPUs only."""

from __future__ import annotations

import torch
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """BN whose batch is that of all processes, for any device and backend: `(N, C, *positions)` → the same."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any rank from two."""

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, *positions)` → the same; in eval mode, or in one process, plain BN."""
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        # Sums of squares lose half their digits; float64 has them to spare.
        x = input.double()
        count = x.new_tensor([input.numel() / input.shape[1]])
        sums = all_reduce(torch.cat((x.sum(axes), (x * x).sum(axes), count)))
        n = sums[-1]
        mean, square = (sums[:-1] / n).chunk(2)
        var = square - mean * mean
        self._track(mean.detach(), (var * n / (n - 1)).detach())
        shape = (1, -1, *[1] * (input.ndim - 2))
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        out = (x - mean.reshape(shape)) * scale.reshape(shape)
        return (out + self.bias.reshape(shape) if self.affine else out).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics, the variance being the unbiased one, as PyTorch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(var.to(self.running_var.dtype), weight)


class Synced(LayerSync):
    """Lightning's hook: every BN of a model becomes a `SyncBatchNorm` for the training, and what it was after it."""

    def __init__(self) -> None:
        self._types: dict[str, type[nn.Module]] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Change the class alone: parameters, buffers and hooks stay, so an optimizer may already hold them."""
        for name, part in model.named_modules():
            if isinstance(part, _BatchNorm):
                self._types[name] = type(part)
                part.__class__ = SyncBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Give every BN its own class back."""
        for name, part in model.named_modules():
            if name in self._types:
                part.__class__ = self._types[name]
        return model
