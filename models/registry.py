"""The architectures that `bnfold train` knows, by name; listing them imports no torch."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """One registered architecture: `factory` in `module` builds it; `task`, of `models/tasks.py`, is what it learns."""

    name: str
    module: str
    factory: str
    task: str
    description: str

    def load(self) -> Callable[..., nn.Module]:
        """The factory itself, `factory(*, input_shape, ..., style) -> nn.Module`; imports torch."""
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(self.module), self.factory)
        return factory

    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example where none is given; imports torch."""
        return tuple(inspect.signature(self.load()).parameters["input_shape"].default)


_ROWS = (
    ("mlp", "mlp", "MLP", "classify", "linear layers with BN, for images or feature vectors"),
    ("lenet", "lenet", "LeNet", "classify", "two convolutions with average pools, three linear layers"),
    ("resnet", "resnet", "ResNet", "classify", "residual net, BN after every convolution"),
    ("preact", "preact", "PreActResNet", "classify", "residual net v2, BN before every convolution"),
    ("mobilenet", "mobilenet", "MobileNet", "classify", "inverted residuals, depthwise convolutions"),
    ("mobilenetv3", "mobilenetv3", "MobileNetV3", "classify", "the same with squeeze-and-excitation and hard-swish"),
    ("densenet", "densenet", "DenseNet", "classify", "dense blocks: BN, ReLU, convolution, concat"),
    ("inception", "inception", "Inception", "classify", "branches of different kernels, concatenated"),
    ("repvgg", "repvgg", "RepVGG", "classify", "3×3, 1×1 and identity branches, each with BN"),
    ("mobileone", "mobileone", "MobileOne", "classify", "depthwise and pointwise convolutions, each several branches"),
    ("fastvit", "fastvit", "FastViT", "classify", "RepMixer blocks: branches, layer scale, large depthwise kernels"),
    ("levit", "levit", "LeViT", "classify", "attention with BN after every linear layer"),
    ("unet", "unet", "UNet", "segment", "down and up again, with skips and transposed convolutions"),
    ("autoencoder", "dcgan", "AutoEncoder", "reconstruct", "strided convolutions and DCGAN's generator"),
    ("dcgan", "dcgan", "Generator", "generate", "transposed convolutions from noise to an image"),
    ("pointnet", "pointnet", "PointNet", "points", "one net for every point, then a maximum"),
    ("crnn", "crnn", "CRNN", "read", "convolutions, BN, a bidirectional LSTM or GRU over the columns"),
    ("ssd", "ssd", "Detector", "detect", "single-shot detector heads on two scales"),
)

ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(name, f"bnfold.models.{module}", factory, task, description)
    for name, module, factory, task, description in _ROWS
}


def build(arch: str, *, normalize: Mapping[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """Build the registered architecture `arch`, freshly initialised and in training mode.

    Every architecture takes `input_shape`, one example without the batch, and the fields of `Style`: `norm` (batch,
    layer, group, instance or none), `position` (before or after the activation), `momentum`, `eps`, `dropout`; further
    keywords are its own. Classifiers take `classes` and map `(N, *input_shape)` float32 to logits `(N, classes)`.
    `normalize`, with a `mean` and a `std` per channel, puts that normalisation in front.

    Raises `UsageError` for an unknown name or style, `InputError` for a keyword or a value that the architecture
    refuses.

    >>> build("resnet", input_shape=(1, 8, 8), classes=10)(torch.zeros(2, 1, 8, 8)).shape  # doctest: +SKIP
    torch.Size([2, 10])
    """
    try:
        factory = architecture(arch).load()
        from bnfold.models.normalized import normalized
        from bnfold.models.style import Style
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is not installed: pip install "bnfold[train]"') from error
    styled, own = inspect.signature(Style).parameters, dict(kwargs)
    chosen = {name: own.pop(name) for name in styled if name in own}
    _check(arch, inspect.signature(factory).parameters, own, [*styled])
    try:
        style = Style(**chosen)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{arch}: {error}") from error
    try:
        module = factory(style=style, **own)
        if normalize is None:
            return module
        shape = kwargs.get("input_shape", architecture(arch).input_shape())
        return normalized(module, **{"input_shape": shape, **normalize})
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        # torch says by a RuntimeError that a size is beyond it.
        raise InputError(f"{arch}: {str(error).partition(chr(10))[0]}") from error


def _check(
    arch: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any], styled: Sequence[str]
) -> None:
    """Raise `InputError` for a keyword that the architecture has not, or a value of another type than it wants."""
    known = [name for name in parameters if name != "style"]
    for name, value in given.items():
        if name not in known:
            raise InputError(f"{arch} has no keyword {name!r}; it takes {', '.join([*known, *styled])}")
        sound, wanted = _TYPES[parameters[name].annotation]
        if not sound(value):
            raise InputError(f"{arch}: {name} is {value!r}; give {wanted}")


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _are_sizes(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_size, value))


_TYPES: dict[str, tuple[Callable[[object], bool], str]] = {
    "int": (_is_size, "a whole number from 1"),
    "Sequence[int]": (_are_sizes, "a list of whole numbers from 1"),
    "str": (lambda value: isinstance(value, str), "a text"),
}
"""By annotation of an architecture's keyword: what it may be, and how to say so."""


def architecture(arch: str) -> Architecture:
    """Look `arch` up in `ARCHITECTURES`; an unknown name is a `UsageError` that offers the nearest ones."""
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch]
    near = difflib.get_close_matches(arch.lower(), ARCHITECTURES, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(ARCHITECTURES)}"
    raise UsageError(f"no architecture is called {arch!r}; {hint}")
