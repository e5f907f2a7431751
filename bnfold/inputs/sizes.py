"""Which sizes the dynamic dimensions of a model can take, found by running it.

A model that runs at some size may still say nothing there: a pool over nothing gives NaN, and no frame fits into a few
samples of sound. A size at which an output is empty, zero or nowhere finite is taken only if there is none better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from bnfold import graph
from bnfold.arrays import Array
from bnfold.errors import InputError

Dims = Mapping[str, int]
# Runs the model at these sizes and returns which share of its outputs says something, or why it refuses.
Attempt = Callable[[Dims], float | str]

# Sizes tried for dimensions that are not the batch, smallest first.
LADDER = (16, 32, 64, 128, 224, 256, 512)
# And for a dimension that is alone, which may count samples of a signal.
LONG = (2048, 16384)
BATCH = (1, 3)
# Candidates whose sizes multiply to more are not tried.
LARGEST = 1 << 20
# How many sizes of the model's own constants are tried where none of these runs: one of them counts its features.
TRIED = 32
# The size of the other dimensions meanwhile: large enough for most kernels.
OTHERS = 64


def cases(model: ir.Model, batch: Sequence[str], rest: Sequence[str], fixed: Dims, attempt: Attempt) -> list[Dims]:
    """Return sizes for all dimensions: the smallest that run with batch 1, then batch 3, odd and large ones.

    `batch`, `rest` and `fixed` name each dynamic dimension once. Raises `InputError` if the model refuses all sizes.
    """
    if not batch and not rest:
        return [dict(fixed)]
    first, scaled = _first(model, batch, rest, fixed, attempt)
    found = [first]
    variants: list[list[Dims]] = []
    if rows := [key for key in batch if key not in scaled]:
        variants.append([dict.fromkeys(rows, BATCH[1])])
    if scaled:
        smallest = first[scaled[0]]
        odd = smallest + smallest // 2 + 1
        # Sides that differ show what square inputs hide; models that want equal or even sizes refuse them.
        variants.append([{key: odd + 2 * i for i, key in enumerate(scaled)}, dict.fromkeys(scaled, odd)])
        variants.append([dict.fromkeys(scaled, 2 * smallest)])
    for alternatives in variants:
        runs = ({**first, **sizes} for sizes in alternatives)
        found += [case for case in runs if not isinstance(attempt(case), str)][:1]
    return found


def _first(
    model: ir.Model, batch: Sequence[str], rest: Sequence[str], fixed: Dims, attempt: Attempt
) -> tuple[Dims, Sequence[str]]:
    """The first candidate that runs, and which of its dimensions may take other sizes."""
    best, most = None, -1.0
    problems: list[str] = []
    for sizes, scaled in _candidates(model, batch, rest):
        case = {**sizes, **fixed}
        if math.prod(case.values()) > LARGEST:
            continue
        share = attempt(case)
        if isinstance(share, str):
            problems.append(share)
        elif share > most:
            best, most = (case, scaled), share
        if most == 1.0:
            break
    if best is not None:
        return best
    keys = (*batch, *rest)
    free = ", ".join(keys)
    if len(problems) > 1 and len(set(problems)) == 1:
        raise InputError(f"no size tried for {free} runs, all for one reason: {problems[0]}; repair the model")
    last = problems[-1] if problems else "they are too large"
    raise InputError(f"no size tried for {free} runs; give one that does, as --dim {keys[0]}=…. Last: {last}")


def _candidates(model: ir.Model, batch: Sequence[str], rest: Sequence[str]) -> Iterator[tuple[Dims, Sequence[str]]]:
    """Sizes for `batch` and `rest`, the likely ones first, each with the dimensions that may take other sizes."""
    rows = dict.fromkeys(batch, BATCH[0])
    for size in (BATCH[0],) if not rest else (*LADDER, *LONG) if len(rest) == 1 else LADDER:
        yield {**rows, **dict.fromkeys(rest, size)}, rest
    # One of several may be a batch that has another place, as in the state of a recurrent network.
    for key in rest if len(rest) > 1 else ():
        others = [other for other in rest if other != key]
        for size in LADDER:
            yield {**rows, **dict.fromkeys(others, size), key: BATCH[0]}, others
    known = _sizes_of_constants(model)
    yield from _with_features(rows, rest, known)
    # A leading axis may count steps of time instead of rows.
    free = (*batch, *rest)
    for size in LADDER if batch else ():
        yield dict.fromkeys(free, size), free
    if batch:
        yield from _with_features({}, free, known)


def _with_features(rows: Dims, keys: Sequence[str], known: Sequence[int]) -> Iterator[tuple[Dims, Sequence[str]]]:
    for key in keys:
        others = [other for other in keys if other != key]
        for size in known:
            yield {**rows, **dict.fromkeys(others, OTHERS), key: size}, others


def _sizes_of_constants(model: ir.Model) -> list[int]:
    """The distinct sizes of the constants' axes, in the order in which the nodes read them."""
    constants = (graph.tensor(value) for node in model.graph for value in node.inputs)
    sizes = (size for constant in constants if constant is not None for size in constant.shape.numpy())
    return list(dict.fromkeys(sizes))[:TRIED]


def telling(outputs: Sequence[Array]) -> float:
    """Return the share of outputs that say something: that hold a number other than zero."""
    return sum(map(_says_something, outputs)) / len(outputs) if outputs else 1.0


def _says_something(output: Array) -> bool:
    return bool(np.any((output != 0) & (np.isfinite(output) if output.dtype.kind in "fc" else True)))
