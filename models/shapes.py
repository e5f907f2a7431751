"""What the architectures ask of `input_shape`."""

from __future__ import annotations

from collections.abc import Sequence


def image_shape(input_shape: Sequence[int], *, least: int = 1, multiple: int = 1) -> tuple[int, int, int]:
    """`input_shape` as `(C, H, W)`.

    Raises `ValueError` for anything but three positive sizes, an H or W below `least`, or one that is no multiple of
    `multiple`.
    """
    sizes = tuple(int(size) for size in input_shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"input_shape must be (channels, height, width), got {sizes}; only mlp takes other shapes")
    channels, height, width = sizes
    if min(height, width) < least:
        raise ValueError(f"images must be at least {least}×{least}, got {height}×{width}")
    if height % multiple or width % multiple:
        raise ValueError(f"height and width must be multiples of {multiple}, got {height}×{width}")
    return channels, height, width
