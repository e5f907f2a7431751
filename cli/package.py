"""`bnfold package`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import example, output, shown


@click.group(
    "package",
    short_help="Package a model for a fleet.",
    epilog=example("bnfold package triton folded.onnx -o repository --name digits"),
)
def command() -> None:
    """Package a model for Triton, or write the manifest with which KServe runs it."""


@command.command(
    "triton",
    short_help="Write a model into a Triton model repository.",
    epilog=example(
        "bnfold package triton folded.onnx -o repository",
        "bnfold package triton folded.onnx -o repository --name digits --max-batch 32 --gpu",
    ),
)
@click.argument("model")
@output("the repository; a new version is added to it", "DIR")
@click.option("--name", metavar="NAME", help="The model's name in the repository.  [default: the file's]")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="Its version.  [default: the next]")
@click.option("--max-batch", type=click.IntRange(min=0), default=0, show_default=True, metavar="ROWS", help="Rows that "
              "Triton may join; 0 joins none.")  # fmt: skip
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Copies.")
@click.option("--gpu", is_flag=True, help="Run it on GPUs.")
@shown
def triton(model: str, output: str, screen: Any, **options: Any) -> None:
    """Write MODEL and its config.pbtxt into a Triton model repository, which `bnfold serve` reads as well."""
    with screen.working(f"reading {model}"):
        from bnfold.report.layout import plain
        from bnfold.serve import packaging

        done = packaging.triton(model, output, **options)
    told = (f"{done.name}, version {done.version}", *done.files)
    screen.result("package", {"model": model, **done.to_dict()}, *map(plain, told))


@command.command(
    "kserve",
    short_help="Print the manifest with which KServe runs it.",
    epilog=example("bnfold package kserve --name digits --storage s3://bucket/repository"),
)
@click.option("--name", required=True, metavar="NAME", help="The service's name in Kubernetes.")
@click.option("--storage", required=True, metavar="URI", help="Where the repository of `package triton` is.")
@click.option("--replicas", type=click.IntRange(min=0), default=1, show_default=True, metavar="N", help="At least so "
              "many.")  # fmt: skip
@click.option("--memory", default="2Gi", show_default=True, metavar="SIZE", help="Memory of each.")
@click.option("--gpu", is_flag=True, help="One GPU for each.")
def kserve(**options: Any) -> None:
    """Print a KServe manifest that serves a Triton repository by the Open Inference Protocol."""
    from bnfold.serve import packaging

    click.echo(packaging.kserve(**options), nl=False)
