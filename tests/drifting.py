"""A small network trained on digits, and what can happen to its input: for tests and benchmarks of drift."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]


def blurred(images: Images, strength: float) -> Images:
    """Each pixel mixed with its neighbours, `strength` times in both directions; the border is repeated."""
    x = np.asarray(images, np.float64)
    for axis in (-1, -2):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (1, 1)
        wide = np.pad(x, pad, mode="edge")
        sides = np.take(wide, range(x.shape[axis]), axis) + np.take(wide, range(2, x.shape[axis] + 2), axis)
        x = (1 - strength) * x + strength * sides / 2
    return x.astype(np.float32)


def moved(images: Images, pixels: int) -> Images:
    """To the right by so many pixels; what leaves is lost, what comes in is background."""
    result = np.zeros_like(images)
    result[..., pixels:] = images[..., : images.shape[-1] - pixels]
    return result


def inverted(images: Images, share: float) -> Images:
    """Ink and paper exchanged in this share of the images, evenly spread."""
    chosen = np.diff(np.floor(share * np.arange(len(images) + 1))) > 0
    return np.where(chosen[:, None, None, None], 1 - images, images)


CORRUPTIONS: dict[str, tuple[Callable[[Images, float], Images], tuple[float, ...]]] = {
    "shifted": (lambda images, by: images + np.float32(by), (0.1, 0.2, 0.4)),
    "brightened": (lambda images, by: images * np.float32(by), (1.5, 2, 3)),
    "dimmed": (lambda images, to: images * np.float32(to), (0.8, 0.5, 0.3)),
    "blurred": (blurred, (0.2, 0.4, 0.6)),
    "inverted": (inverted, (0.25, 0.5, 1)),
    "moved": (lambda images, pixels: moved(images, int(pixels)), (1, 2, 3)),
}
"""By name: the change, and its strengths from the weakest to the strongest. Images are in 0 … 1."""
