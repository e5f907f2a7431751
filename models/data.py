"""Images with labels to train on and to be judged by: scikit-learn's digits, or a user's `.npz` or folder."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.arrays import Array
from bnfold.errors import InputError, UsageError
from bnfold.npz import load_npz

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Targets = Array

HELD_OUT = 0.2
"""The share of every class that is held out where the data itself names no test part."""


@dataclass(frozen=True)
class Split:
    """Examples `(N, *input_shape)` float32 and what to learn of them, labels `(N,)` int64 in `0 … classes − 1`.

    Tasks other than classification have other targets `(N, …)`, made by `bnfold.models.derive`.
    """

    images: Images
    labels: Targets

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A named data set: `train` to learn from, `test` held out; `seed` is the split's."""

    name: str
    train: Split
    test: Split
    seed: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example, without the batch."""
        return tuple(self.train.images.shape[1:])

    @property
    def classes(self) -> int:
        """The number of classes: the largest label in either part, plus one."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1


def load(source: str | Path, *, seed: int = 0) -> Dataset:
    """Load `"digits"`, a `.npz` file or a folder of images, with 20 % of every class held out where it names no part.

    `digits` is scikit-learn's 1,797 handwritten digits (UCI, Alpaydin & Kaynak 1998): float32 `(N, 1, 8, 8)`
    in 0 … 1, no download. A `.npz` holds `x_train, y_train, x_test, y_test`, or `x, y` to be split: x
    floating-point as the model wants it, or uint8, which is divided by 255; `(N, H, W)` gets one channel; y
    whole numbers from 0. A folder is MNIST, CIFAR, or images by class (`bnfold.models.folders`). `seed` chooses the
    held-out part, the same part on every machine; it has no effect on files that name their own.

    Raises `InputError` for a file that is missing, unreadable or does not fit, `UsageError` for another name or seed.

    >>> data = load("digits")  # doctest: +SKIP
    >>> len(data.train), len(data.test), data.input_shape  # doctest: +SKIP
    (1438, 359, (1, 8, 8))
    """
    if seed < 0:
        raise UsageError(f"seed is {seed}; it must be at least 0")
    if source == "digits":
        return _digits(seed)
    path = Path(source)
    if path.suffix == ".npz":
        return _dataset(path, load_npz(path), seed)
    if path.is_dir():
        from bnfold.models.folders import read_folder

        return _dataset(path, read_folder(path), seed)
    raise UsageError(f"no data is called {str(source)!r}; give digits, or the path of a .npz file or a folder")


def accuracy(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The share of right predictions, 0 … 1.

    `predictions` are logits `(N, classes)` or class numbers `(N,)`; `labels` `(N,)`. A row of logits that holds a
    NaN counts as wrong. Raises `InputError` where the lengths differ or nothing is given.
    """
    values, truth = np.asarray(predictions), np.asarray(labels)
    if len(values) != len(truth) or not len(truth):
        raise InputError(f"{len(values)} predictions for {len(truth)} labels: give one per label, and at least one")
    if values.ndim == 1:
        return float(np.mean(values == truth))
    # argmax takes a NaN for the maximum, and would be right by chance.
    sound = ~np.isnan(values).any(axis=1)
    return float(np.mean((values.argmax(axis=1) == truth) & sound))


def stratified(labels: Labels, share: float, seed: int) -> tuple[Labels, Labels]:
    """Sorted indices `(train, test)`, with `round(share · n)` of each class's n examples in the test part.

    A class of two or more keeps at least one example on either side.
    """
    # PCG64 on raw integers is the same on every platform and numpy; Generator.shuffle promises less.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    test: list[npt.NDArray[np.int64]] = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        count = round(share * len(members))
        test.append(members[: min(max(count, 1), len(members) - 1)])
    held = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), held), held


def _digits(seed: int) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise UsageError(
            'digits come with scikit-learn, which is not installed: pip install "bnfold[train]"'
        ) from error
    bunch: Any = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    return _split("digits", images, bunch.target.astype(np.int64), seed)


def _dataset(path: Path, arrays: dict[str, Array], seed: int) -> Dataset:
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        train = _checked(path, "x_train", arrays["x_train"], "y_train", arrays["y_train"])
        test = _checked(path, "x_test", arrays["x_test"], "y_test", arrays["y_test"])
        if train.images.shape[1:] != test.images.shape[1:]:
            raise InputError(
                f"{path}: x_train is {train.images.shape}, x_test {test.images.shape};"
                " make their examples the same shape"
            )
        return Dataset(str(path), train, test, seed)
    if {"x", "y"} <= arrays.keys():
        whole = _checked(path, "x", arrays["x"], "y", arrays["y"])
        if len(whole) < 2:
            raise InputError(f"{path}: one example can't be split; give x_train, y_train, x_test and y_test")
        return _split(str(path), whole.images, whole.labels, seed)
    found = ", ".join(sorted(arrays)) or "nothing"
    raise InputError(f"{path}: needs arrays x_train, y_train, x_test, y_test, or x, y; it holds {found}")


def _checked(path: Path, x_name: str, x: Array, y_name: str, y: Array) -> Split:
    def refuse(what: str) -> InputError:
        return InputError(f"{path}: {what}")

    if x.dtype == np.uint8:
        x = x.astype(np.float32) / np.float32(255)
    if not np.issubdtype(x.dtype, np.floating):
        raise refuse(f"{x_name} is {x.dtype}; give floating-point values, or uint8, which is divided by 255")
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise refuse(f"{x_name} has shape {x.shape}; give (N, C, H, W), (N, H, W) or (N, features), none of them 0")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x[:, None] if x.ndim == 3 else x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise refuse(f"{x_name} holds values that are not finite in float32; remove them")
    if not np.issubdtype(y.dtype, np.integer) or y.shape != (len(x),):
        raise refuse(f"{y_name} is {y.dtype} {y.shape}; give {len(x)} whole numbers, one per row of {x_name}")
    if y.min() < 0 or y.max() >= 100_000:
        raise refuse(f"{y_name} runs from {y.min()} to {y.max()}; number the classes from 0")
    return Split(x, y.astype(np.int64))


def _split(name: str, images: Images, labels: Labels, seed: int) -> Dataset:
    train, test = stratified(labels, HELD_OUT, seed)
    if not len(test):
        raise InputError(f"{name}: no class has two examples; give x_train, y_train, x_test and y_test")
    return Dataset(name, Split(images[train], labels[train]), Split(images[test], labels[test]), seed)
