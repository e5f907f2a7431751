"""`bnfold inspect`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import example, freeze_initializers, merge, shown, sizes
from bnfold.cli.sizes import resolve_sizes


@click.command(
    "inspect",
    short_help="Say where every BatchNorm would go, or why not.",
    epilog=example("bnfold inspect model.onnx"),
)
@click.argument("model")
@merge
@freeze_initializers
@sizes
@shown
def command(model: str, dims: tuple[str, ...], shapes: tuple[str, ...], screen: Any, **options: Any) -> None:
    """Say of every BatchNorm in MODEL where it would be folded, or what keeps it from that.

    It also says which layers would merge, and whether the frozen statistics are sound. Nothing is changed.
    """
    with screen.working(f"reading {model}"):
        from bnfold import io, pipeline
        from bnfold.audit.health import health
        from bnfold.report import tables

        loaded = io.load(model)
        unsound = health(loaded)
        taken = resolve_sizes(dims, shapes, lambda: loaded)
        report = pipeline.inspect(loaded, dims=taken, **options)
    payload = {"model": model, **report.to_dict(), "health": [finding.to_dict() for finding in unsound]}
    screen.result("inspect", payload, *tables.inspected(report, unsound))
