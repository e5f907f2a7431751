"""Which axes of which inputs are free, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bnfold.errors import UsageError

if TYPE_CHECKING:
    import torch

Axes = dict[str, dict[int, str]]
"""By input, the names of its free axes."""

BATCH = "batch"
_SPEC = re.compile(r"(?:(?P<input>.+):)?(?P<axis>\d+)=(?P<dim>[A-Za-z_]\w*)")


def free_axes(
    given: Iterable[str] | Mapping[str, Mapping[int, str]], examples: Mapping[str, torch.Tensor], batched: set[str]
) -> Axes:
    """The free axes that `given` names, as `"INPUT:AXIS=NAME"` or as a mapping, and the batch of the inputs `batched`.

    One input need not be named. Raises `UsageError` for an input, axis or size that is not there.
    """
    axes: Axes = {name: {0: BATCH} for name in examples if name in batched}
    sizes: dict[str, int] = {}
    for text, name, axis, dim in _entries(given, list(examples)):
        shape = examples[name].shape
        if axis >= len(shape):
            raise UsageError(f"--dynamic {text}: input {name!r} has axes 0 to {len(shape) - 1} only")
        if shape[axis] < 2:
            raise UsageError(
                f"--dynamic {text}: the example has the size {shape[axis]} there, which exporters take for a constant;"
                " give one of at least 2"
            )
        if sizes.setdefault(dim, shape[axis]) != shape[axis]:
            raise UsageError(f"--dynamic {text}: {dim!r} is {sizes[dim]} elsewhere, {shape[axis]} here; name it anew")
        axes.setdefault(name, {})[axis] = dim
    return axes


def _entries(
    given: Iterable[str] | Mapping[str, Mapping[int, str]], inputs: list[str]
) -> Iterable[tuple[str, str, int, str]]:
    """Yield each entry as the user wrote it, its input, axis and name."""
    if isinstance(given, Mapping):
        places = [(name, axis, dim) for name, axes in given.items() for axis, dim in axes.items()]
        entries = [(f"{name}:{axis}={dim}", name, axis, dim) for name, axis, dim in places]
    else:
        entries = []
        for text in given:
            match = _SPEC.fullmatch(text)
            if match is None:
                raise UsageError(f"--dynamic {text}: write INPUT:AXIS=NAME, such as input:2=height")
            name = match["input"] or (inputs[0] if len(inputs) == 1 else "")
            entries.append((text, name, int(match["axis"]), match["dim"]))
    for text, name, axis, dim in entries:
        if name not in inputs:
            raise UsageError(f"--dynamic {text}: no input is called {name!r}; the inputs are {', '.join(inputs)}")
        yield text, name, axis, dim
