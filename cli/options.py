"""Options that several verbs share, as decorators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Option:
    """One option as a decorator that knows under what name its value reaches the verb; its help shows a default."""

    def __init__(self, *declarations: str, **settings: Any) -> None:
        settings.setdefault("show_default", "default" in settings)
        self._declare = click.option(*declarations, **settings)
        self.name = str(click.Option(declarations, **settings).name)

    def __call__(self, function: F) -> F:
        return self._declare(function)


def declared(options: Iterable[Option]) -> Callable[[F], F]:
    """Give a verb these options, in their order."""

    def decorate(function: F) -> F:
        for option in reversed([*options]):
            function = option(function)
        return function

    return decorate


def gathered(keyword: str, options: Iterable[Option], into: Callable[..., Any] = dict) -> Callable[[F], F]:
    """Give a verb these options, whose values reach it as one argument `keyword`: what `into` makes of them by name."""

    def decorate(function: F) -> F:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            values = {option.name: kwargs.pop(option.name) for option in options}
            return function(*args, **{keyword: into(**values)}, **kwargs)

        return declared(options)(wrapper)  # type: ignore[return-value]

    return decorate


def example(*lines: str) -> str:
    """An epilog with lines that run as they stand."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def output(what: str, metavar: str = "FILE") -> Option:
    """`-o/--output FILE`; whether it can be written is checked by us, with exit code 4."""
    return Option("-o", "--output", metavar=metavar, required=True, callback=_given, help=f"Where to write {what}.")


def _given(context: click.Context, option: click.Parameter, path: str) -> str:
    if not path:
        raise click.BadParameter("give the path of a file", context, option)
    return path


def _screen(as_json: bool, quiet: bool) -> Any:
    from bnfold.cli.console import Screen

    return Screen(as_json, quiet)


def _baseline(path: str | None, update: bool, factor: float) -> Any:
    from bnfold.cli.reporting import Baseline

    return Baseline(path, update, factor)


def _named(**files: str | None) -> dict[str, str]:
    return {name: path for name, path in files.items() if path is not None}


provider = Option("--provider", default="cpu", metavar="NAME", help="Execution provider: cpu, cuda …")
inputs = Option("--inputs", metavar="X.npz", help="Compare on these inputs, one array each, instead of random ones.")
seed = Option("--seed", default=0, type=click.IntRange(min=0), metavar="N", help="Seed of the random inputs.")
dims = Option("--dim", "dims", multiple=True, metavar="NAME=N", help="Size of a dynamic dimension; may be repeated.")
shapes = Option(
    "--shape", "shapes", multiple=True, metavar="INPUT=1x3x8x8", help="Shape of a dynamic input; may be repeated."
)
freeze_initializers = Option(
    "--freeze-initializers", is_flag=True, help="Take initializers that are also graph inputs as constants."
)
merge = Option("--merge/--no-merge", default=True, help="Make one layer of linear branches where it is cheaper.")

# `dims` and `shapes` as they were given; `bnfold.cli.sizes` says what they mean.
sizes = declared((dims, shapes))

quiet = Option("-q", "--quiet", is_flag=True, help="Print no result and no progress; the exit code tells.")

# `--json` and `-q`, as one `screen`.
shown = gathered("screen", (
    Option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    quiet,
), into=_screen)  # fmt: skip

# Report files, as one mapping `files` from format to path.
reports = gathered("files", (
    Option("--json-file", metavar="FILE", help="Write the result as JSON."),
    Option("--junit", metavar="FILE", help="Write it as JUnit XML."),
    Option("--sarif", metavar="FILE", help="Write it as SARIF 2.1.0, for code scanning."),
    Option("--markdown", metavar="FILE", help="Write it as Markdown, for a job summary."),
    Option("--html", metavar="FILE", help="Write it as one HTML page with plots."),
), into=_named)  # fmt: skip

# What is held against an earlier run, as one `baseline`.
baselines = gathered("baseline", (
    Option("--baseline", "path", metavar="FILE", help="Exit with 1 if an error ratio has grown since FILE."),
    Option("--update-baseline", "update", is_flag=True, help="Write the ratios to the baseline's file instead."),
    Option("--baseline-factor", "factor", default=2.0, metavar="X", help="How much is a regression."),
), into=_baseline)  # fmt: skip

# How two models are compared, as one mapping `comparison`; `bnfold.cli.sizes.resolve` makes `bnfold.verify`'s keywords.
verification = gathered("comparison", (
    inputs,
    seed,
    Option("--samples", default=16, type=click.IntRange(min=1), metavar="N", help="Number of random inputs."),
    dims,
    shapes,
    Option("--provider", "providers", multiple=True, default=("cpu",), metavar="NAME",
           help="Execution provider: cpu, cuda …; may be repeated."),
    Option("--level", "levels", multiple=True, metavar="LEVEL",
           help="Run the candidate at off, basic, extended, deployed or tf32; may be repeated.  "
           "[default: off, deployed]"),
    Option("--strict", is_flag=True, help="Refuse a provider that leaves any node to another."),
    Option("--quick", is_flag=True, help="Four inputs, one of them for the layers, one measure of the noise."),
    Option("--all", "keep_going", is_flag=True, help="Go on with all checks after a mismatch."),
    Option("--rtol", type=float, metavar="X", help="An extra limit on the relative difference."),
    Option("--atol", type=float, metavar="X", help="An extra limit on the absolute difference."),
))  # fmt: skip
