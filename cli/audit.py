"""`bnfold audit`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import example, provider, shown
from bnfold.cli.sources import loading


@click.command(
    "audit",
    short_help="Say if the BatchNorms' statistics are sound and fit the data.",
    epilog=example(
        "bnfold audit model.onnx",
        "bnfold audit model.onnx --data x.npz --recalibrate renewed.onnx",
    ),
)
@click.argument("model")
@click.option("--data", metavar="X.npz", help="Examples, one array per input; labels or y are the right classes.")
@click.option("--recalibrate", metavar="FILE", help="Re-estimate the statistics on the data, write the model to FILE.")
@click.option("--negate", is_flag=True, help="Recalibrate for negatives: with a minus sign in front of the input.")
@click.option("--allow", multiple=True, metavar="CODE", help="A finding that does not count; may be repeated.")
@loading
@provider
@click.option("--html", metavar="FILE", help="Write it as one HTML page with a plot of every layer.")
@shown
def command(
    model: str,
    data: str | None,
    recalibrate: str | None,
    html: str | None,
    how: dict[str, Any],
    screen: Any,
    **options: Any,
) -> int:
    """Say whether the frozen statistics of every BatchNorm in MODEL are sound and, with --data, still describe it.

    MODEL is ONNX, folded by bnfold or not, or what `bnfold export` takes. A channel is flagged if its mean is off by
    more than 0.25σ or its variance by more than a factor of 2, and chance can't explain it; a layer by its median
    channel.
    """
    with screen.working("loading") as say:
        from bnfold.audit import audit
        from bnfold.files import check_output

        for path in filter(None, (recalibrate, html)):
            check_output(path)
        if html is not None:
            from bnfold.report.html import require

            require()
        report = audit(model, data, recalibrate=recalibrate is not None, progress=say, **how, **options)
        if recalibrate is not None:
            say("writing")
            report.save(recalibrate)
    from bnfold.report import audits

    payload = {"model": model, "data": data, "output": recalibrate, **report.to_dict()}
    if html is not None:
        audits.write(payload, html)
    screen.result("audit", payload, *audits.tables(payload))
    return report.exit_code
