"""`bnfold bisect`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import example, inputs, provider, seed, shown, sizes
from bnfold.cli.sizes import resolve_sizes
from bnfold.errors import UsageError


@click.command(
    "bisect",
    short_help="Name the layers in which two models differ.",
    epilog=example("bnfold bisect model.onnx folded.onnx", "bnfold bisect model.onnx folded.onnx -o reproducer"),
)
@click.argument("reference")
@click.argument("candidate")
@inputs
@seed
@sizes
@provider
@click.option(
    "--method", metavar="NAME",
    help="local: every layer on equal inputs; splice: hybrids of both.  [default: local with a fold map, else splice]",
)  # fmt: skip
@click.option("-o", "--output", metavar="DIR", help="Write a reproducer: two small models, inputs, command.")
@shown
def command(
    reference: str, candidate: str, dims: tuple[str, ...], shapes: tuple[str, ...], method: str | None,
    output: str | None, screen: Any, **options: Any,
) -> int:  # fmt: skip
    """Name the layers of CANDIDATE that compute something else than REFERENCE: exit code 1 if there are any."""
    if method not in (None, "local", "splice"):
        raise UsageError(f"--method {method}: give local or splice")
    with screen.working(f"reading {reference}") as say:
        from bnfold import io
        from bnfold.report import tables
        from bnfold.verify.bisection import bisect, check_folder

        if output is not None:
            check_folder(output)
        found_sizes = resolve_sizes(dims, shapes, lambda: io.load(reference))
        found = bisect(reference, candidate, dims=found_sizes or None, method=method, progress=say, **options)  # type: ignore[arg-type]
        written = output if found.layers else None
        if written is not None:
            found.save(written)
    payload = {"reference": reference, "candidate": candidate, "output": written, **found.to_dict()}
    screen.result("bisect", payload, *tables.bisected(payload, str(found)))
    return found.exit_code
