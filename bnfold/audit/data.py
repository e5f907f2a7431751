"""The user's data, cut into batches, with the labels beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.errors import InputError
from bnfold.inputs import feeds
from bnfold.npz import load_npz

Feeds = Mapping[str, Array]
Given = Mapping[str, Array] | str | os.PathLike[str]

# An array of this name is no input but the right classes, unless the model has an input of that name.
LABELS = ("labels", "label", "y", "y_test", "target")
# What a single input may be called beside its own name.
ALIASES = ("x", "input", "images", "data", "x_test")
FIRST = 16
MOST = 1024
# Observed values held at a time.
BUDGET = 256 << 20


@dataclass(eq=False)
class Data:
    """Arrays by input name, `rows` examples in each; `step` is the fixed batch size where there is one.

    `whole` says that the arrays do not share a batch axis, so that they are one batch as they are; `where` names them.
    """

    arrays: dict[str, Array]
    rows: int
    step: int | None = None
    whole: bool = False
    labels: Array | None = None
    where: str = "the given data"

    @property
    def used(self) -> int:
        """How many examples the batches hold: a model of fixed batch size leaves a remainder."""
        return self.rows if self.step is None else self.rows // self.step * self.step

    def batches(self) -> Iterator[Batch]:
        """Yield the data in order; a batch's `weigh` sets the size of those that follow it."""
        if self.whole:
            yield Batch(self.arrays, slice(None), self.rows)
            return
        start, size = 0, self.step or FIRST
        while start < self.used:
            rows = slice(start, min(start + size, self.used))
            batch = Batch({name: array[rows] for name, array in self.arrays.items()}, rows, rows.stop - start)
            yield batch
            start = rows.stop
            if self.step is None and batch.weight:
                size = int(np.clip(BUDGET * batch.examples // batch.weight, 1, MOST))


@dataclass(eq=False)
class Batch:
    """Some rows of the data, for one run; `weight` is how many bytes were observed in it."""

    feeds: Feeds
    rows: slice
    examples: int
    weight: int = 0


def read(given: Given) -> tuple[str, dict[str, Array]]:
    """The arrays, and what to call them in a message."""
    if isinstance(given, Mapping):
        return "the given data", dict(given)
    return str(given), load_npz(given)


def for_model(model: ir.Model, given: Given) -> Data:
    """Fit the arrays to an ONNX model's inputs. Raises `InputError` where they do not."""
    where, arrays = read(given)
    wanted = {str(value.name): value for value in feeds.inputs(model)}
    arrays, labels = split(arrays, list(wanted), where)
    first = {shape[0] if (shape := value.shape) is not None and len(shape) else 1 for value in wanted.values()}
    sizes = {array.shape[0] if array.ndim else 1 for array in arrays.values()}
    fixed = {size for size in first if isinstance(size, int)}
    whole = len(sizes) > 1 or len(fixed) > 1 or (bool(fixed) and len(first) > 1)
    data = Data(arrays, max(sizes, default=0), None if whole or not fixed else fixed.pop(), whole, labels, where)
    try:
        feeds.given(model, {name: array if whole else array[: data.used or 1] for name, array in arrays.items()}, 1)
    except InputError as error:
        raise InputError(str(error).replace("the given inputs", where, 1)) from None
    return _checked(data)


def for_names(names: list[str], given: Given) -> Data:
    """Fit the arrays to inputs that are known by name only. Raises `InputError` where they do not."""
    where, arrays = read(given)
    arrays, labels = split(arrays, names, where)
    missing = [name for name in names if name not in arrays]
    if missing or not arrays:
        raise InputError(f"{where}: no array named {missing[0]!r}; the model's inputs are {', '.join(names)}")
    sizes = {array.shape[0] if array.ndim else 1 for array in arrays.values()}
    return _checked(Data(arrays, max(sizes), None, len(sizes) > 1, labels, where))


def split(arrays: dict[str, Array], names: list[str], where: str) -> tuple[dict[str, Array], Array | None]:
    """The arrays that are inputs, and the labels if there are any."""
    found = [key for key in LABELS if key in arrays and key not in names]
    labels = arrays[found[0]] if found else None
    rest = {name: array for name, array in arrays.items() if name not in found}
    if len(names) == 1 and names[0] not in rest and len(rest) == 1 and next(iter(rest)) in ALIASES:
        rest = {names[0]: next(iter(rest.values()))}
    if labels is not None and not (labels.ndim and np.issubdtype(labels.dtype, np.integer)):
        raise InputError(f"{where}: {found[0]!r} is {labels.dtype} {labels.shape}; give whole numbers for each example")
    return rest, labels


def _checked(data: Data) -> Data:
    where = data.where
    if not data.rows or not data.used:
        raise InputError(f"{where}: {data.rows} examples are fewer than the model's batch of {data.step or 1}")
    if data.labels is not None and len(data.labels) != data.rows:
        raise InputError(f"{where}: {len(data.labels)} labels for {data.rows} examples; give one per example")
    for name, array in data.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{where}: {name!r} holds NaN or infinite values; remove those examples")
    return data
