"""`bnfold optimize`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import (
    Option,
    baselines,
    example,
    freeze_initializers,
    merge,
    output,
    reports,
    shown,
    verification,
)
from bnfold.cli.sizes import resolve
from bnfold.errors import UsageError


@click.command(
    "optimize",
    short_help="Fold, verify, write.",
    epilog=example("bnfold optimize model.onnx -o folded.onnx", "bnfold optimize folded.onnx -o folded.onnx"),
)
@click.argument("model")
@output("the folded model; MODEL itself is replaced only by what is proven the same")
@Option("--verify/--no-verify", default=True, help="Write it only if it is proven the same.")
@Option("--simplify/--no-simplify", default=None, help="Run onnxsim first.  [default: if it may help]")
@merge
@freeze_initializers
@verification
@reports
@baselines
@shown
def command(
    model: str, output: str, simplify: bool | None, comparison: dict[str, Any], files: dict[str, str],
    baseline: Any, screen: Any, **options: Any,
) -> int:  # fmt: skip
    """Fold every BatchNorm of MODEL that can be folded, verify the result and write it.

    Exit code 0 written, 1 mismatch, 3 inconclusive.
    """
    if not options["verify"] and (files or baseline.path):
        raise UsageError("reports and baselines are made of the verification that --no-verify leaves out")
    with screen.working(f"reading {model}") as say:
        from bnfold import io, pipeline
        from bnfold.cli.reporting import told
        from bnfold.files import check_output
        from bnfold.report import document, tables, writing
        from bnfold.report.findings import verification as verdict_of

        check_output(output)
        writing.check(files, [model, output])
        mode = {None: "auto", True: "always", False: "never"}[simplify]
        against = resolve(comparison, lambda: io.load(model))
        baseline.check(against, [model, output, *files.values()])
        size = against.pop("dims")
        done = pipeline.optimize(model, simplify=mode, dims=size, verify_options=against, progress=say, **options)
        verdict = None if done.verdict is None else baseline.apply(told(done.verdict))
        code = 0 if verdict is None else int(verdict["exit_code"])
        if code == 0:
            say("writing")
            done.save(output)
        written = output if code == 0 else None
        payload = {"model": model, "output": written, **done.to_dict(), "verdict": verdict}
        if files:
            writing.write(verdict_of(document("optimize", payload)), files)
    screen.result("optimize", payload, *tables.optimized(done, verdict, written))
    if verdict is not None and code:
        why = verdict["status"] if verdict["status"] != "pass" else "worse than the baseline"
        click.echo(f"bnfold: {output} was not written: {why}", err=True)
    return code
