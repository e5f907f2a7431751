"""`bnfold report`: the reports of a saved result or a training, without running it again."""

from __future__ import annotations

import click

from bnfold.cli.options import example, output, quiet, reports
from bnfold.errors import UsageError, printable


@click.group(
    "report",
    short_help="Make reports of a saved result or a training.",
    epilog=example("bnfold report verify verdict.json --html verdict.html"),
)
def command() -> None:
    """Make reports of a result that was saved as JSON, or of a training; neither is run again."""


@command.command(
    "verify",
    short_help="Write JUnit, SARIF, Markdown or HTML of a verification.",
    epilog=example("bnfold report verify verdict.json --html verdict.html --junit verdict.xml"),
)
@click.argument("result")
@reports
@quiet
def verify(result: str, files: dict[str, str], quiet: bool) -> None:
    """Make reports of RESULT, what `bnfold verify` or `bnfold optimize` wrote with --json or --json-file."""
    from bnfold.report import writing
    from bnfold.report.findings import outcome, read

    if not files:
        raise UsageError("name at least one report to write, such as --html FILE")
    writing.check(files, [result])
    document = read(result)
    writing.write(document, files)
    if not quiet:
        said = f"{document['reference']}, {document['candidate']}: {outcome(document)[1]}"
        click.echo(printable(f"{said} → {', '.join(files.values())}"))


@command.command(
    "train",
    short_help="Draw trainings as a page with plots.",
    epilog=example("bnfold report train runs/mlp -o training.html"),
)
@click.argument("sources", nargs=-1, required=True, metavar="LOGDIR|CKPT...")
@output("the HTML page")
@click.option("--data", metavar="NAME|PATH", help="Data for the activations, where the checkpoint's own is not here.")
@quiet
def train(sources: tuple[str, ...], output: str, data: str | None, quiet: bool) -> None:
    """Show how trainings went: curves, BN's statistics over the steps, activations before and after every norm.

    Each source is a folder of `bnfold train --log`, or a checkpoint, of which only the activations are known. Several
    are drawn into the same curves, such as one with BN and one without.
    """
    from bnfold.files import check_output, replacing
    from bnfold.report import html, training

    html.require()
    check_output(output)
    from bnfold.models.story import story

    told = story(sources, data=data)
    page = training.html(told)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    if not quiet:
        click.echo(printable(f"{training.title(told)} → {output}"))
