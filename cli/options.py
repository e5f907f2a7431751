"""Options that several verbs share, as decorators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar

import click

from bnfold.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def example(*lines: str) -> str:
    """An epilog with lines that run as they stand."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def shown(function: F) -> F:
    """`--json` and `-q`, handed to the verb as one `screen`."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("-q", "--quiet", is_flag=True, help="Print no result and no progress; the exit code tells.")
    @wraps(function)
    def wrapper(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> Any:
        from bnfold.cli.console import Screen

        return function(*args, screen=Screen(as_json, quiet), **kwargs)

    return wrapper  # type: ignore[return-value]


def output(what: str, *, required: bool = True) -> Callable[[F], F]:
    """`-o/--output PATH`; whether it can be written is checked by us, with exit code 4."""
    return click.option("-o", "--output", metavar="PATH", required=required, help=f"Where to write {what}.")


def provider(function: F) -> F:
    """`--provider`, one name."""
    return click.option(
        "--provider", default="cpu", show_default=True, metavar="NAME", help="Execution provider: cpu, cuda …"
    )(function)


_REPORTS = (
    click.option("--json-file", metavar="FILE", help="Write the result as JSON."),
    click.option("--junit", metavar="FILE", help="Write it as JUnit XML."),
    click.option("--sarif", metavar="FILE", help="Write it as SARIF 2.1.0, for code scanning."),
    click.option("--markdown", metavar="FILE", help="Write it as Markdown, for a job summary."),
    click.option("--html", metavar="FILE", help="Write it as one HTML page with plots."),
)


def reports(function: F) -> F:
    """The options for report files, handed to the verb as one mapping `files` from format to path."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        named = {name: kwargs.pop(name) for name in ("json_file", "junit", "sarif", "markdown", "html")}
        return function(*args, files={name: path for name, path in named.items() if path is not None}, **kwargs)

    for option in reversed(_REPORTS):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


def baselines(function: F) -> F:
    """`--baseline`, `--update-baseline` and `--baseline-factor`, handed to the verb as one `baseline`."""

    @click.option("--baseline", "path", metavar="FILE", help="Exit with 1 if an error ratio has grown since FILE.")
    @click.option("--update-baseline", "update", is_flag=True, help="Write the ratios to the baseline's file instead.")
    @click.option(
        "--baseline-factor", "factor", default=2.0, show_default=True, metavar="X", help="How much is a regression."
    )
    @wraps(function)
    def wrapper(*args: Any, path: str | None, update: bool, factor: float, **kwargs: Any) -> Any:
        from bnfold.cli.reporting import Baseline

        return function(*args, baseline=Baseline(path, update, factor), **kwargs)

    return wrapper  # type: ignore[return-value]


_SIZES = (
    click.option("--dim", "dims", multiple=True, metavar="NAME=N", help="Size of a dynamic dimension, by its name."),
    click.option("--shape", "shapes", multiple=True, metavar="INPUT=1x3x8x8", help="Shape of a dynamic input."),
)
_VERIFY = (
    click.option("--inputs", metavar="X.npz", help="Compare on these inputs, one array each, instead of random ones."),
    click.option("--seed", default=0, show_default=True, metavar="N", help="Seed of the random inputs."),
    click.option("--samples", default=16, show_default=True, metavar="N", help="Number of random inputs."),
    *_SIZES,
    click.option(
        "--provider",
        "providers",
        multiple=True,
        default=("cpu",),
        show_default=True,
        metavar="NAME",
        help="Execution provider: cpu, cuda …; may be repeated.",
    ),
    click.option(
        "--level",
        "levels",
        multiple=True,
        metavar="LEVEL",
        help="Run the candidate at off, basic, extended, deployed or tf32; may be repeated.  [default: off, deployed]",
    ),
    click.option("--strict", is_flag=True, help="Refuse a provider that leaves any node to another."),
    click.option("--quick", is_flag=True, help="Four inputs, one of them for the layers, one measure of the noise."),
    click.option("--all", "keep_going", is_flag=True, help="Go on with all checks after a mismatch."),
    click.option("--rtol", type=float, metavar="X", help="An extra limit on the relative difference."),
    click.option("--atol", type=float, metavar="X", help="An extra limit on the absolute difference."),
)


def sizes(function: F) -> F:
    """`--dim` and `--shape`, handed to the verb as `dims` and `shapes`; see `resolve_sizes`."""
    for option in reversed(_SIZES):
        function = option(function)
    return function


def verification(function: F) -> F:
    """The options of a comparison, handed to the verb as one mapping `comparison`; see `resolve`."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        names = (
            "inputs", "seed", "samples", "dims", "shapes", "providers", "levels", "strict", "quick", "keep_going",
            "rtol", "atol",
        )  # fmt: skip
        comparison = {name: kwargs.pop(name) for name in names}
        return function(*args, comparison=comparison, **kwargs)

    for option in reversed(_VERIFY):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


def resolve(comparison: Mapping[str, Any], model: Callable[[], Any]) -> dict[str, Any]:
    """The keywords of `bnfold.verify`: `--shape` becomes sizes of the model's dynamic dimensions.

    Raises `UsageError` for what does not fit the model's inputs.
    """
    options = dict(comparison)
    dims = resolve_sizes(options.pop("dims"), options.pop("shapes"), model)
    if options["samples"] < 1:
        raise UsageError(f"--samples {options['samples']}: give at least 1")
    if options["seed"] < 0:
        raise UsageError(f"--seed {options['seed']}: give a whole number from 0")
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
