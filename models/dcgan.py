"""DCGAN's generator and an auto-encoder around it (Radford et al. 2015, https://arxiv.org/abs/1511.06434)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class Generator(nn.Module):
    """Transposed convolutions with BN and ReLU from a vector to an image, a sigmoid at the end.

    `(N, latent)` → `(N, *image_shape)` in 0 … 1, `input_shape` being `(latent,)`. 2 BNs. Raises `ValueError` where H
    and W are no multiples of 4, or `input_shape` is no vector's.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (16,),
        image_shape: Sequence[int] = (1, 8, 8),
        width: int = 24,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        channels, height, columns = _image(image_shape)
        if len(input_shape) != 1 or input_shape[0] < 1:
            raise ValueError(f"input_shape must be (latent,), got {tuple(input_shape)}")
        # What a transposed convolution on one pixel is, for any height and width.
        self.seed = nn.Linear(input_shape[0], 2 * width * (height // 4) * (columns // 4), bias=False)
        self.grid = (-1, 2 * width, height // 4, columns // 4)
        self.first = style.normed(2 * width)
        self.drop = nn.Dropout(style.dropout)
        self.up = style.up(2 * width, width, 4, nn.ReLU)
        self.head = nn.ConvTranspose2d(width, channels, 4, 2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """`(N, latent)` → `(N, C, H, W)`."""
        x = self.up(self.drop(self.first(self.seed(z).reshape(self.grid))))
        image: Tensor = self.head(x).sigmoid()
        return image


class AutoEncoder(nn.Module):
    """Strided convolutions with leaky ReLU, like DCGAN's discriminator, to a vector; the generator back from it.

    `(N, C, H, W)` → the same in 0 … 1. 4 BNs. Raises `ValueError` where `input_shape` is not `(C, H, W)` with H and W
    multiples of 4.
    """

    def __init__(
        self, *, input_shape: Sequence[int] = (1, 8, 8), latent: int = 16, width: int = 24, style: Style = PLAIN
    ) -> None:
        super().__init__()
        channels, height, columns = _image(input_shape)
        leaky = partial(nn.LeakyReLU, 0.2)
        self.encoder = nn.Sequential(
            style.conv(channels, width, 3, leaky, stride=2),
            style.conv(width, 2 * width, 3, leaky, stride=2),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (columns // 4), latent),
        )
        self.decoder = Generator(input_shape=(latent,), image_shape=input_shape, width=width, style=style)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → the same."""
        image: Tensor = self.decoder(self.encoder(x))
        return image


def _image(shape: Sequence[int]) -> tuple[int, int, int]:
    return image_shape(shape, multiple=4)
