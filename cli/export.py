"""`bnfold export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from bnfold.cli.options import example, output, shown
from bnfold.cli.sources import keyword, loading


@click.command(
    "export",
    short_help="Export a PyTorch module to ONNX.",
    epilog=example(
        "bnfold export digits.safetensors -o digits.onnx",
        "bnfold export torch.nn:BatchNorm2d --arg num_features=3 --input 1x3x8x8 -o bn.onnx",
    ),
)
@click.argument("source")
@output("the ONNX model")
@click.option(
    "--input", "inputs", multiple=True, metavar="[NAME:]1x3x8x8[:DTYPE]", help="Example input; may be repeated."
)
@loading
@click.option(
    "--arg", "arguments", multiple=True, metavar="NAME=VALUE",
    help="One keyword for the factory, as JSON or text; may be repeated.",
)  # fmt: skip
@click.option("--trust", is_flag=True, help="Read a .pt2 archive, which may run code.")
@click.option("--exporter", default="dynamo", show_default=True, metavar="NAME", help="dynamo or torchscript.")
@click.option("--opset", type=int, metavar="N", help="ONNX opset version.  [default: the exporter's]")
@click.option("--dynamic-batch/--static-batch", default=True, help="Leave the batch size free.  [default: dynamic]")
@click.option("--dynamic", multiple=True, metavar="INPUT:AXIS=NAME", help="Leave another axis free; may be repeated.")
@click.option("--verify/--no-verify", default=True, help="Hold the result against the module.  [default: verify]")
@click.option("--strict", is_flag=True, help="Write nothing and exit with 1 if a BatchNorm is not sound.")
@click.option("--allow", multiple=True, metavar="CODE", help="A finding that --strict lets pass; may be repeated.")
@click.option("--data", metavar="X.npz", help="Examples: do the BatchNorms' statistics describe them?")
@shown
def command(
    source: str,
    output: str,
    inputs: tuple[str, ...],
    how: dict[str, Any],
    arguments: tuple[str, ...],
    strict: bool,
    allow: tuple[str, ...],
    screen: Any,
    **options: Any,
) -> None:
    """Export a PyTorch module to ONNX with every BatchNorm kept, and verify it against the module.

    SOURCE is a checkpoint of `bnfold train`, or package.module:factory, which is called with the keywords and given the
    weights. Nothing in a weights file is run. The BatchNorms are audited first; see `bnfold audit`.
    """
    from bnfold.audit.findings import codes, lines, rejected
    from bnfold.files import check_output

    check_output(output)
    how["kwargs"] |= dict(keyword(text) for text in arguments)
    waived, found = codes(allow), []

    def audit(findings: Sequence[Any]) -> None:
        found.extend(finding for finding in findings if finding.code not in waived)
        if strict and found:
            raise rejected(source, found)
        for line in lines(found):
            screen.note(line)

    with screen.working("loading torch") as say:
        from bnfold.export import export

        say(f"exporting {source}")
        model = export(source, inputs=inputs or None, audit=audit, note=screen.note, **how, **options)
    from rich.markup import escape

    from bnfold import io
    from bnfold.graph import BATCH_NORM, node_count

    io.save(model, output)
    nodes, count = node_count(model), node_count(model, BATCH_NORM)
    opset = model.opset_imports.get("", 0)
    payload = {
        "source": source, "output": output, "opset": opset, "nodes": nodes, "batchnorms": count,
        "findings": [finding.to_dict() for finding in found],
    }  # fmt: skip
    norms = f"{count} BatchNorm{'s' * (count != 1)}"
    screen.result("export", payload, escape(f"{nodes} nodes, {norms}, opset {opset} → {output}"))
