"""`bnfold verify`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import baselines, example, reports, shown, verification
from bnfold.cli.sizes import resolve
from bnfold.errors import UsageError


@click.command(
    "verify",
    short_help="Prove two models the same.",
    epilog=example(
        "bnfold verify model.onnx folded.onnx",
        "bnfold verify model.onnx folded.onnx --junit verdict.xml --html verdict.html --json-file verdict.json",
        "bnfold verify digits.safetensors digits.onnx --torch",
    ),
)
@click.argument("reference")
@click.argument("candidate", required=False)
@verification
@click.option("--expect-folds", type=int, metavar="N", help="Inconclusive unless the candidate holds N folds.")
@click.option("--torch", is_flag=True, help="REFERENCE is what `bnfold export` takes, run by PyTorch.")
@click.option("--weights", metavar="FILE", help="With --torch: weights for the factory.")
@click.option("--kwargs", metavar="JSON", help="With --torch: keywords for the factory, as a JSON object.")
@reports
@baselines
@shown
def command(
    reference: str, candidate: str | None, comparison: dict[str, Any], expect_folds: int | None, torch: bool,
    weights: str | None, kwargs: str | None, files: dict[str, str], baseline: Any, screen: Any,
) -> int:  # fmt: skip
    """Prove that CANDIDATE computes what REFERENCE does: exit code 0 pass, 1 mismatch, 3 inconclusive.

    Without CANDIDATE, REFERENCE is compared with itself at every optimization level of ONNX Runtime.
    """
    if candidate is None:
        if torch:
            raise UsageError("--torch needs the CANDIDATE that was exported from it")
        candidate, comparison["levels"] = reference, comparison["levels"] or ("off", "basic", "extended", "deployed")
    if not torch and (weights or kwargs):
        raise UsageError("--weights and --kwargs belong to a PyTorch REFERENCE; add --torch")
    with screen.working(f"reading {reference}") as say:
        from bnfold import io
        from bnfold.cli.reporting import told
        from bnfold.report import document, tables, writing
        from bnfold.verify import verify

        writing.check(files, [reference, candidate])
        options = resolve(comparison, lambda: io.load(candidate if torch else reference))
        baseline.check(options, [reference, candidate, *files.values()])
        source = _module(reference, weights, kwargs) if torch else reference
        verdict = verify(source, candidate, expect_folds=expect_folds, progress=say, **options)
        found = baseline.apply({"reference": reference, "candidate": candidate, **told(verdict)})
        writing.write(document("verify", found), files)
    screen.result("verify", found, *tables.verdict(found))
    return int(found["exit_code"])


def _module(source: str, weights: str | None, kwargs: str | None) -> Any:
    """The PyTorch module that SOURCE names."""
    from bnfold.cli.sources import json_object

    try:
        from bnfold.models.modules import load_module
    except ModuleNotFoundError as error:
        raise UsageError(f'--torch needs {error.name}: pip install "bnfold[torch]"') from error
    return load_module(source, weights=weights, kwargs=json_object("--kwargs", kwargs))[0]
