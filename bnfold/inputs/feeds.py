"""Inputs for a model: seeded samples of several kinds and shapes, or the user's own from an `.npz` file.

Initializers that are also graph inputs are no inputs here: they are taken as constants.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold import graph
from bnfold.arrays import Array
from bnfold.errors import InputError, UsageError
from bnfold.inputs import sizes
from bnfold.inputs.isolated import Prober
from bnfold.inputs.kinds import ORDER, draw
from bnfold.inputs.sizes import Dims
from bnfold.io import source_path
from bnfold.npz import load_npz


@dataclass(frozen=True)
class Sample:
    """One set of inputs: what kind it is, the sizes of the dynamic dimensions, and an array for each input."""

    kind: str
    dims: Dims
    feeds: Mapping[str, Array]

    def __str__(self) -> str:
        sizes = ", ".join(f"{k}={v}" for k, v in self.dims.items())
        return f"{self.kind} ({sizes})" if sizes else self.kind


def inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that a caller must feed, in order."""
    constants = model.graph.initializers
    return [v for v in model.graph.inputs if v.name not in constants]


def dynamic_dims(model: ir.Model) -> dict[str, list[tuple[str, int]]]:
    """Return each dynamic dimension, by symbolic name or "input:axis", with the (input, axis) places it sizes."""
    result: dict[str, list[tuple[str, int]]] = {}
    for value in inputs(model):
        for axis, size in enumerate(_shape(value)):
            if not isinstance(size, int):
                result.setdefault(_key(value, axis, size), []).append((str(value.name), axis))
    return result


def batch_dims(model: ir.Model) -> list[str]:
    """Return the dynamic dimensions that are a leading axis wherever they occur: the batch."""
    return [key for key, places in dynamic_dims(model).items() if all(axis == 0 for _, axis in places)]


def generated(
    model: ir.Model,
    *,
    seed: int = 0,
    samples: int = 16,
    dims: Dims | None = None,
    attempt: Callable[[Mapping[str, Array]], Sequence[Array] | str] = lambda feeds: (),
) -> list[Sample]:
    """Draw `samples` seeded sets of inputs over several kinds and, where dimensions are dynamic, several shapes.

    `dims` fixes dynamic dimensions by name or "input:axis". `attempt` runs the model and returns its outputs or why it
    refuses: sizes that it refuses are not used. A model that was read from a file is tried at sizes other than the
    batch's in another process, for ONNX Runtime crashes on some of them. Raises `InputError` if it refuses all sizes,
    `UsageError` for a dimension that the model does not have.
    """
    if samples < 1:
        raise UsageError(f"samples must be at least 1, not {samples}")
    if seed < 0:
        raise UsageError(f"seed must be at least 0, not {seed}")
    fixed = _fixed(model, dims or {})
    free = [key for key in dynamic_dims(model) if key not in fixed]
    batch = [key for key in batch_dims(model) if key in free]
    rest = [key for key in free if key not in batch]

    def tried(case: Dims) -> float | str:
        outputs = attempt(example(model, case))
        return outputs if isinstance(outputs, str) else sizes.telling(outputs)

    path = source_path(model)
    with Prober(path) if path is not None and rest else nullcontext() as prober:
        cases = sizes.cases(model, batch, rest, fixed, tried if prober is None else prober.attempt)
    result = []
    for index in range(samples):
        # Every fourth sample takes one of the other shapes in turn: they are there to be covered, and cost more.
        other = len(cases) > 1 and index % 4 == 2
        case = cases[1 + (index // 4) % (len(cases) - 1)] if other else cases[0]
        kind = ORDER[index % len(ORDER)]
        result.append(Sample(kind, case, _feeds(model, case, kind, seed, index)))
    return result


def given(model: ir.Model, arrays: Mapping[str, Array] | str | os.PathLike[str], samples: int = 16) -> list[Sample]:
    """Turn the user's arrays, or an `.npz` file of them, into at most `samples` sets of inputs.

    Each array has its input's shape, or more rows than the model's batch: then all arrays are cut along axis 0,
    rows kept together; or one more axis in front, which counts the sets. Raises `InputError` for names, shapes or
    types that do not fit.
    """
    where = "the given inputs"
    if not isinstance(arrays, Mapping):
        where, arrays = str(arrays), load_npz(arrays)
    wanted = {str(v.name): v for v in inputs(model)}
    _check_names(where, arrays, wanted)
    stacked = all(arrays[n].ndim == len(_shape(v)) + 1 for n, v in wanted.items())
    for name, value in wanted.items():
        _check_array(where, arrays[name], value, stacked)
    _check_symbols(where, arrays, wanted, stacked)
    if stacked:
        count = min(a.shape[0] for a in arrays.values())
        sets = [{n: a[i] for n, a in arrays.items()} for i in range(min(count, samples))]
    else:
        sets = list(_rows(arrays, wanted, samples))
    return [Sample(f"given {i}", {}, feeds) for i, feeds in enumerate(sets)]


def describe(value: ir.Value) -> str:
    """Return an input as a user would write it, such as "x (float32 N×3×224×224)"."""
    sizes = "×".join(str(s) if isinstance(s, int) else s or "?" for s in _shape(value)) or "scalar"
    return f"{value.name} ({_dtype(value).name} {sizes})"


def _shape(value: ir.Value) -> list[int | str | None]:
    if value.shape is None:
        raise InputError(f"input {value.name!r} has no shape in the model; give inputs in an .npz file")
    return [graph.size(d) for d in value.shape.dims]


def _dtype(value: ir.Value) -> np.dtype[Any]:
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        raise InputError(f"input {value.name!r} is no numeric tensor; such models can't be fed here")
    return value.dtype.numpy()


def _key(value: ir.Value, axis: int, symbol: str | None) -> str:
    return symbol or f"{value.name}:{axis}"


def _fixed(model: ir.Model, given: Dims) -> dict[str, int]:
    """The sizes that the user gave, by the names of `dynamic_dims`."""
    places = dynamic_dims(model)
    fixed = {}
    for key, size in given.items():
        name, _, axis = key.rpartition(":")
        if key not in places and axis.isdigit():
            # "input:axis" also names a dimension that has a symbol.
            key = next((k for k, where in places.items() if (name, int(axis)) in where), key)
        if key not in places:
            known = ", ".join(places) or "none"
            raise UsageError(f"the model has no dynamic dimension {key!r} (its dynamic dimensions: {known})")
        if size < 1:
            raise UsageError(f"dimension {key!r} must be at least 1, not {size}")
        fixed[key] = size
    return fixed


def example(model: ir.Model, case: Dims) -> dict[str, Array]:
    """Return one set of inputs at these sizes."""
    return _feeds(model, case, "normal", 0, 0)


def _feeds(model: ir.Model, case: Dims, kind: str, seed: int, index: int) -> dict[str, Array]:
    feeds = {}
    for value in inputs(model):
        shape = [s if isinstance(s, int) else case[_key(value, a, s)] for a, s in enumerate(_shape(value))]
        rng = np.random.default_rng([seed, index, zlib.crc32(str(value.name).encode())])
        feeds[str(value.name)] = draw(value, tuple(shape), _dtype(value), kind, index, rng)
    return feeds


def _check_names(where: str, arrays: Mapping[str, Array], wanted: Mapping[str, ir.Value]) -> None:
    missing, unknown = wanted.keys() - arrays.keys(), arrays.keys() - wanted.keys()
    listed = ", ".join(describe(v) for v in wanted.values())
    if missing:
        raise InputError(f"{where}: no array named {_names(missing)}; the model's inputs are {listed}")
    if unknown:
        raise InputError(f"{where}: {_names(unknown)} is no input of the model; its inputs are {listed}")


def _check_array(where: str, array: Array, value: ir.Value, stacked: bool) -> None:
    expected, dtype = _shape(value), _dtype(value)
    if array.dtype != dtype:
        raise InputError(f"{where}: {value.name!r} is {array.dtype.name}, the model wants {dtype.name}; convert it")
    shape = array.shape[1:] if stacked else array.shape
    fits = len(shape) == len(expected) and array.size > 0
    for axis, (have, want) in enumerate(zip(shape, expected, strict=False)):
        rows = axis == 0 and not stacked and isinstance(want, int) and want > 0 and have % want == 0
        fits = fits and (not isinstance(want, int) or have == want or rows)
    if not fits:
        sizes = "×".join(map(str, array.shape)) or "scalar"
        raise InputError(f"{where}: {value.name!r} has shape {sizes}, which does not fit the model's {describe(value)}")


def _check_symbols(where: str, arrays: Mapping[str, Array], wanted: Mapping[str, ir.Value], stacked: bool) -> None:
    sizes: dict[str, int] = {}
    for name, value in wanted.items():
        shape = arrays[name].shape[1:] if stacked else arrays[name].shape
        for have, want in zip(shape, _shape(value), strict=True):
            if isinstance(want, str) and sizes.setdefault(want, have) != have:
                raise InputError(f"{where}: {name!r} has {have} for {want!r}, another input has {sizes[want]}")


def _rows(arrays: Mapping[str, Array], wanted: Mapping[str, ir.Value], samples: int) -> Iterator[dict[str, Array]]:
    """Cut all arrays along axis 0 into chunks of the model's static batch, or of equal parts if it is dynamic."""
    shapes = {n: _shape(v) for n, v in wanted.items()}
    rows = {a.shape[0] if a.ndim else 1 for a in arrays.values()}
    first = {s[0] if s else 1 for s in shapes.values()}
    whole = dict(arrays)
    if len(rows) > 1 or len(first) > 1 or not all(shapes.values()):
        yield whole
        return
    count, batch = rows.pop(), first.pop()
    parts = count // batch if isinstance(batch, int) else min(count, samples)
    pieces = {n: np.array_split(a, parts) for n, a in whole.items()}
    for index in range(min(parts, samples)):
        yield {n: p[index] for n, p in pieces.items()}


def _names(names: Sequence[str] | set[str]) -> str:
    return ", ".join(repr(n) for n in sorted(names))
