"""Other tasks from labelled images: masks, boxes, strips, point clouds, noise. numpy only, seeded.

Each function takes a `Split` of images `(N, C, H, W)` in 0 … 1 with their labels `(N,)`, and a generator, and returns
the split that its task learns from: as real as the images are.
"""

from __future__ import annotations

import numpy as np

from bnfold.models.boxes import default_boxes, encode, overlap
from bnfold.models.data import Images, Split

INK = 0.5
"""A pixel at least this bright, in its brightest channel, is ink."""

POINTS = 48
SYMBOLS = 3
LATENT = 16


def images(split: Split, random: np.random.Generator) -> Split:
    """The images to be reproduced: `(N, C, H, W)` → the same."""
    return Split(split.images, split.images)


def masks(split: Split, random: np.random.Generator) -> Split:
    """Images dimmed and under noise → the ink `(N, 1, H, W)`, 0 or 1, of the clean ones."""
    dim = random.uniform(0.5, 1.0, (len(split), 1, 1, 1))
    noisy = split.images * dim + random.normal(0, 0.15, split.images.shape)
    ink = split.images.max(axis=1, keepdims=True) >= INK
    return Split(noisy.astype(np.float32), ink.astype(np.float32))


def points(split: Split, random: np.random.Generator) -> Split:
    """Points `(N, 3, POINTS)`, x and y in −1 … 1 and brightness, drawn from the pixels by brightness → the labels."""
    bright = split.images.mean(axis=1)
    count, height, width = bright.shape
    # A blank image has no ink to draw from; every pixel of it is as likely.
    weights = bright.reshape(count, -1).astype(np.float64) + 1e-6
    shares = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    drawn = (random.random((count, POINTS, 1)) > shares[:, None]).sum(axis=2).clip(max=height * width - 1)
    x, y = drawn % width, drawn // width
    values = np.take_along_axis(bright.reshape(count, -1), drawn, axis=1)
    cloud = np.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1, values), axis=1)
    return Split(cloud.astype(np.float32), split.labels)


def strips(split: Split, random: np.random.Generator) -> Split:
    """Strips `(N, C, H, SYMBOLS·W)` of images side by side, each image first in one of them → labels `(N, SYMBOLS)`."""
    others = [random.permutation(len(split)) for _ in range(SYMBOLS - 1)]
    order = [np.arange(len(split)), *others]
    joined = np.concatenate([split.images[index] for index in order], axis=3)
    return Split(joined, np.stack([split.labels[index] for index in order], axis=1))


def scenes(split: Split, random: np.random.Generator) -> Split:
    """Each image, once or twice as large, somewhere on a canvas of three times its size under noise.

    Targets `(N, boxes, 5)`, one row for each of the default boxes: the class plus one, 0 for background, and the
    offsets of the ink's box; a default box has the class where it overlaps the ink's box by half, or most of all.
    """
    count, channels, height, width = split.images.shape
    canvas = np.abs(random.normal(0, 0.08, (count, channels, 3 * height, 3 * width)))
    boxes = np.empty((count, 1, 4), np.float32)
    for i, image in enumerate(split.images):
        size = int(random.integers(1, 3))
        large = np.kron(image, np.ones((1, size, size), np.float32))
        top, left = (int(random.integers(0, 3 * n - size * n + 1)) for n in (height, width))
        canvas[i, :, top : top + size * height, left : left + size * width] += large
        boxes[i, 0] = _ink_box(large, top, left, 3 * height, 3 * width)
    defaults = default_boxes(3 * height, 3 * width)
    shared = overlap(boxes, defaults)
    match = (shared >= 0.5) | (shared == shared.max(axis=1, keepdims=True))
    kinds = np.where(match, split.labels[:, None] + 1, 0)
    targets = np.concatenate((kinds[..., None], encode(boxes, defaults)), axis=2)
    return Split(canvas.astype(np.float32), targets.astype(np.float32))


def noise(split: Split, random: np.random.Generator) -> Split:
    """Standard normal vectors `(N, LATENT)` → the images, whose distribution is to be matched."""
    return Split(random.normal(size=(len(split), LATENT)).astype(np.float32), split.images)


def _ink_box(image: Images, top: int, left: int, height: int, width: int) -> tuple[float, float, float, float]:
    """The box `(cx, cy, w, h)` around the ink of an image at this place, in shares of the canvas."""
    ink = image.max(axis=0) >= INK
    if not ink.any():
        ink[:] = True
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    y0, y1, x0, x1 = top + rows[0], top + rows[-1] + 1, left + columns[0], left + columns[-1] + 1
    return (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
