"""What an architecture learns: how its data is derived, its loss, and the score that it is judged by on held-out data.

A score is a share, 1 the best. A new task is one row of `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from bnfold.errors import InputError, UsageError
from bnfold.models import boxes, derive
from bnfold.models.data import Dataset, Images, Split, Targets, accuracy

Outputs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """One row: `derive` makes examples and targets, `keywords` are what the architecture must know beside their shape.

    `loss` takes outputs and targets, `score` takes inputs, outputs and targets; `metric` names the score.
    """

    name: str
    derive: Callable[[Split, np.random.Generator], Split] | None
    keywords: Callable[[Dataset], dict[str, Any]]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: str
    score: Callable[[Images, Outputs, Targets], float]

    def data(self, data: Dataset) -> Dataset:
        """The data set of this task, its held-out part derived from the held-out part alone.

        Raises `InputError` where it would need images with labels and `data` holds something else.
        """
        if self.derive is None:
            return data
        if len(data.input_shape) != 3 or data.train.labels.ndim != 1:
            raise InputError(f"{data.name}: to {self.name} takes images (N, C, H, W), not {data.input_shape}")
        parts = [
            self.derive(part, np.random.default_rng([data.seed, i])) for i, part in enumerate((data.train, data.test))
        ]
        return replace(data, train=parts[0], test=parts[1])


def task(name: str) -> Task:
    """Look a task up; raises `UsageError` for an unknown name."""
    if name not in TASKS:
        raise UsageError(f"no task is called {name!r}; known are {', '.join(TASKS)}")
    return TASKS[name]


def _cross_entropy(out: Tensor, labels: Tensor) -> Tensor:
    """Logits `(N, …, classes)` and labels `(N, …)`."""
    return functional.cross_entropy(out.flatten(0, -2), labels.flatten())


def _mask_loss(out: Tensor, mask: Tensor) -> Tensor:
    """Logits and masks `(N, 1, H, W)`."""
    return functional.binary_cross_entropy_with_logits(out, mask)


def _box_loss(out: Tensor, targets: Tensor) -> Tensor:
    """SSD's: classes by cross-entropy, three background boxes to every object, and smooth L1 for the offsets."""
    kinds = targets[..., 0].long()
    found = kinds > 0
    each = functional.cross_entropy(out[..., 4:].flatten(0, 1), kinds.flatten(), reduction="none")
    objects, background = each[found.flatten()], each[~found.flatten()]
    # The hardest ones: most boxes are background and easy, and would drown the few that matter.
    hard = background.topk(min(3 * len(objects), len(background))).values
    offsets = functional.smooth_l1_loss(out[..., :4][found], targets[..., 1:][found], reduction="sum")
    return (objects.sum() + hard.sum() + offsets) / len(objects)


_BANDWIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)


def _discrepancy(out: Tensor, real: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two samples under Gaussian kernels (Li et al. 2015,
    https://arxiv.org/abs/1502.02761), which trains a generator without a discriminator.
    """
    x, y = out.flatten(1), real.flatten(1)
    both = torch.cat((x, y))
    norms = (both * both).sum(1)
    distances = norms[:, None] + norms[None] - 2 * both @ both.T
    kernel = sum((-distances / (2 * width**2)).exp() for width in _BANDWIDTHS)
    assert isinstance(kernel, Tensor)
    n, m = len(x), len(y)

    def mean_off_diagonal(block: Tensor) -> Tensor:
        return (block.sum() - block.diagonal().sum()) / (len(block) * (len(block) - 1))

    return mean_off_diagonal(kernel[:n, :n]) + mean_off_diagonal(kernel[n:, n:]) - 2 * kernel[:n, n:].sum() / (n * m)


def _accuracy(inputs: Images, out: Outputs, labels: Targets) -> float:
    return accuracy(out.reshape(-1, out.shape[-1]), labels.reshape(-1))


def _explained(inputs: Images, out: Outputs, images: Targets) -> float:
    """R²: the share of the images' variance around their mean that is reproduced."""
    error = float(((out - images) ** 2).sum())
    return 1 - error / max(float(((images - images.mean(axis=0)) ** 2).sum()), 1e-12)


def _intersection_over_union(inputs: Images, out: Outputs, mask: Targets) -> float:
    """Of the ink in all images."""
    said, true = out > 0, mask > 0.5
    return float((said & true).sum() / max((said | true).sum(), 1))


def _found(inputs: Images, out: Outputs, targets: Targets) -> float:
    """The share of images whose surest box has the right class and covers the true one with IoU ≥ 0.5."""
    defaults = boxes.default_boxes(*inputs.shape[-2:])
    rows = np.arange(len(out))
    scores = out[..., 4:] - out[..., 4:].max(axis=2, keepdims=True)
    shares = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    best = shares[..., 1:].max(axis=2).argmax(axis=1)
    kind = shares[rows, best, 1:].argmax(axis=1) + 1
    true = targets[..., 0].argmax(axis=1)
    overlap = boxes.overlap(
        boxes.decode(out[rows, best, :4], defaults[best]), boxes.decode(targets[rows, true, 1:], defaults[true])
    )
    return float(np.mean((kind == targets[rows, true, 0]) & (overlap >= 0.5)))


def _matched(inputs: Images, out: Outputs, images: Targets) -> float:
    """1 − the discrepancy as a share of what the mean image, given for all, would have: 0 is no better than that."""
    real = torch.from_numpy(images)
    naive = _discrepancy(real.mean(0, keepdim=True).expand_as(real), real)
    return float(1 - _discrepancy(torch.from_numpy(out), real) / naive)


def _classes(data: Dataset) -> dict[str, Any]:
    return {"classes": data.classes}


TASKS = {
    row.name: row
    for row in (
        Task("classify", None, _classes, _cross_entropy, "accuracy", _accuracy),
        Task("points", derive.points, _classes, _cross_entropy, "accuracy", _accuracy),
        Task("read", derive.strips, lambda data: {**_classes(data), "length": derive.SYMBOLS}, _cross_entropy,
             "accuracy", _accuracy),
        Task("reconstruct", derive.images, lambda data: {}, functional.mse_loss, "R²", _explained),
        Task("segment", derive.masks, lambda data: {}, _mask_loss, "IoU", _intersection_over_union),
        Task("detect", derive.scenes, _classes, _box_loss, "found", _found),
        Task("generate", derive.noise, lambda data: {"image_shape": data.input_shape}, _discrepancy, "match", _matched),
    )
}  # fmt: skip
