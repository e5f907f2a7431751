"""What `--dim` and `--shape` say of a model's dynamic dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bnfold.errors import UsageError


def resolve(comparison: Mapping[str, Any], model: Callable[[], Any]) -> dict[str, Any]:
    """The keywords of `bnfold.verify`: `--shape` becomes sizes of the model's dynamic dimensions.

    Raises `UsageError` for what does not fit the model's inputs.
    """
    options = dict(comparison)
    dims = resolve_sizes(options.pop("dims"), options.pop("shapes"), model)
    options["dims"], options["levels"] = dims or None, options["levels"] or None
    return options


def resolve_sizes(dims: Sequence[str], shapes: Sequence[str], model: Callable[[], Any]) -> dict[str, int]:
    """What `--dim` and `--shape` say of dynamic dimensions, by symbolic name, or by "input:axis" where there is none.

    Raises `UsageError` for what does not fit the model's inputs.
    """
    found: dict[str, int] = {}
    for text in dims:
        name, size = _assignment("--dim", text, "batch=4")
        found[name] = _size("--dim", text, size)
    for text in shapes:
        name, parts = _assignment("--shape", text, "input=1x3x8x8")
        found.update(_dynamic(model(), text, name, [_size("--shape", text, part) for part in parts.split("x")], found))
    return found


def _assignment(option: str, text: str, sample: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} {text}: write it like {option} {sample}")
    return name, value


def _size(option: str, text: str, size: str) -> int:
    if not size.isdecimal() or int(size) < 1:
        raise UsageError(f"{option} {text}: {size!r} is not a size; give whole numbers from 1")
    return int(size)


def _dynamic(model: Any, text: str, name: str, sizes: list[int], known: Mapping[str, int]) -> dict[str, int]:
    """The sizes of one input's dynamic dimensions, by symbolic name, or by "input:axis" where there is none."""
    inputs = {value.name: value for value in model.graph.inputs if not value.is_initializer()}
    if name not in inputs:
        raise UsageError(f"--shape {text}: the model has no input {name!r}; its inputs are {', '.join(inputs)}")
    shape = inputs[name].shape
    if shape is None or len(shape) != len(sizes):
        raise UsageError(f"--shape {text}: input {name!r} has the shape {shape}, of another rank")
    found: dict[str, int] = {}
    for axis, (dim, size) in enumerate(zip(shape, sizes, strict=True)):
        key = dim if isinstance(dim, int) else dim.value or f"{name}:{axis}"
        fixed = key if isinstance(key, int) else {**known, **found}.get(key, size)
        if fixed != size:
            raise UsageError(f"--shape {text}: axis {axis} is {size}, but the model or another option says {fixed}")
        if isinstance(key, str):
            found[key] = size
    return found
