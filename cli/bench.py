"""`bnfold bench`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import Option, example, provider, shown, sizes
from bnfold.cli.sizes import resolve_sizes


@click.command(
    "bench",
    short_help="Time models against each other.",
    epilog=example("bnfold bench model.onnx folded.onnx"),
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@provider
@Option("--rounds", default=30, type=click.IntRange(min=1), metavar="N", help="Rounds; each times every model once.")
@Option("--threads", default=1, type=click.IntRange(min=1), metavar="N", help="Threads within an operator.")
@Option("--batch", type=click.IntRange(min=1), metavar="N", help="Size of a dynamic batch dimension.  [default: 1]")
@sizes
@shown
def command(
    models: tuple[str, ...], dims: tuple[str, ...], shapes: tuple[str, ...], screen: Any, **options: Any
) -> None:
    """Time each MODEL in turn on one input and say how long each takes relative to the first."""
    with screen.working("opening sessions") as say:
        from bnfold import io
        from bnfold.bench import bench
        from bnfold.report import tables

        taken = resolve_sizes(dims, shapes, lambda: io.load(models[0]))
        report = bench(models, dims=taken, progress=say, **options)
    screen.result("bench", {"models": list(models), **report.to_dict()}, *tables.bench(report))
