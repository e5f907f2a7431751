"""`bnfold bench`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import example, provider, shown


@click.command(
    "bench",
    short_help="Time models against each other.",
    epilog=example("bnfold bench model.onnx folded.onnx"),
)
@click.argument("models", nargs=-1, required=True)
@provider
@click.option("--rounds", default=30, show_default=True, metavar="N", help="Rounds; each times every model once.")
@click.option("--threads", default=1, show_default=True, metavar="N", help="Threads within an operator.")
@click.option("--batch", type=int, metavar="N", help="Size of a dynamic batch dimension.  [default: 1]")
@shown
def command(models: tuple[str, ...], screen: Any, **options: Any) -> None:
    """Time MODELS in turn on one input and say how long each takes relative to the first."""
    with screen.working("opening sessions") as say:
        from bnfold.bench import bench
        from bnfold.report import tables

        report = bench(models, progress=say, **options)
    screen.result("bench", {"models": list(models), **report.to_dict()}, *tables.bench(report))
