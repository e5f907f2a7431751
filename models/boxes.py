"""Default boxes of the single-shot detector: where they are, and boxes as offsets from them. numpy only.

A box is `(cx, cy, w, h)` in shares of the image. Offsets are those of SSD (Liu et al. 2015,
https://arxiv.org/abs/1512.02325): `(cx − dx) / dw`, `(cy − dy) / dh`, `log(w / dw)`, `log(h / dh)`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]

RATIOS = (1.0, 0.6)
"""Width over height of the default boxes in every cell; a digit is taller than wide."""

_SCALES = ((4, 1 / 3), (8, 2 / 3))
"""Stride of the feature map, and height of its boxes as a share of the image."""


def default_boxes(height: int, width: int) -> Boxes:
    """`(boxes, 4)` for an image of this size: map by map, row by row, column by column, ratio by ratio."""
    parts = []
    for stride, size in _SCALES:
        rows, columns = height // stride, width // stride
        cy, cx, ratio = np.meshgrid(
            (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, RATIOS, indexing="ij"
        )
        parts.append(np.stack((cx, cy, size * ratio, np.full_like(cx, size)), axis=-1).reshape(-1, 4))
    return np.concatenate(parts).astype(np.float32)


def overlap(left: Boxes, right: Boxes) -> npt.NDArray[np.float32]:
    """Intersection over union of boxes `(…, 4)` that broadcast: `(…,)`."""
    low = np.maximum(left[..., :2] - left[..., 2:] / 2, right[..., :2] - right[..., 2:] / 2)
    high = np.minimum(left[..., :2] + left[..., 2:] / 2, right[..., :2] + right[..., 2:] / 2)
    common = np.clip(high - low, 0, None).prod(axis=-1)
    union = left[..., 2:].prod(axis=-1) + right[..., 2:].prod(axis=-1) - common
    result: npt.NDArray[np.float32] = common / np.maximum(union, 1e-12)
    return result


def encode(boxes: Boxes, defaults: Boxes) -> Boxes:
    """Boxes as offsets from the default boxes."""
    return np.concatenate(
        ((boxes[..., :2] - defaults[..., :2]) / defaults[..., 2:], np.log(boxes[..., 2:] / defaults[..., 2:])), axis=-1
    )


def decode(offsets: Boxes, defaults: Boxes) -> Boxes:
    """The boxes that `encode` made these offsets from."""
    centre = offsets[..., :2] * defaults[..., 2:] + defaults[..., :2]
    return np.concatenate((centre, np.exp(offsets[..., 2:]) * defaults[..., 2:]), axis=-1)
