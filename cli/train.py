"""`bnfold train`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import Option, declared, example, output, shown
from bnfold.cli.sources import json_object
from bnfold.errors import InputError
from bnfold.models.registry import ARCHITECTURES

_STYLE = ("norm", "position", "eps", "dropout")
_options = declared((
    Option("--epochs", default=20, metavar="N", help="Passes over the data."),
    Option("--batch-size", default=64, metavar="N", help="Examples a step, over all processes."),
    Option("--lr", default=0.01, metavar="X", help="Peak learning rate."),
    Option("--weight-decay", default=0.05, metavar="X", help="AdamW's weight decay."),
    Option("--dropout", default=0.0, metavar="X", help="Share dropped before the last layer."),
    Option("--clip-grad", default=0.0, metavar="X", help="Largest norm of the gradient; 0 is no limit."),
    Option("--patience", default=0, metavar="N", help="Stop after N epochs without progress; 0 is never."),
    Option("--norm", default="batch", metavar="NAME", help="batch, layer, group, instance or none."),
    Option("--position", default="before", metavar="NAME", help="The norm's: before or after the activation."),
    Option("--momentum", type=float, metavar="X", help="BN's momentum, PyTorch's way: the new batch's weight."),
    Option("--decay", type=float, metavar="X", help="The same, Keras's way: the old statistics' weight."),
    Option("--eps", default=1e-5, metavar="X", help="What is added to the variance."),
    Option("--normalize", is_flag=True, help="Put the normalisation of the inputs into the model."),
    Option("--reestimate", is_flag=True, help="Take BN's statistics anew from all the data in the end."),
    Option("--kwargs", metavar="JSON", help='Keywords of the architecture, such as \'{"width": 32}\'.'),
    Option("--log", metavar="DIR", help="Keep metrics, BN's statistics and the state of every epoch there."),
    Option("--resume", is_flag=True, help="Continue what is in --log, to the very same weights."),
    Option("--seed", default=0, metavar="N", help="Seed of weights, order and split."),
    Option("--precision", default="32", metavar="NAME", help="32, bf16 or 16."),
    Option("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N."),
    Option("--devices", default=1, metavar="N", help="Processes on this machine, with BN over all of them."),
    Option("--nodes", default=1, metavar="N", help="Machines; each runs this with its NODE_RANK and MASTER_ADDR."),
))  # fmt: skip


@click.command(
    "train",
    short_help="Train a registered model on real data.",
    help=f"Train the architecture ARCH ({', '.join(ARCHITECTURES)}) on real data and write a checkpoint.",
    epilog=example(
        "bnfold train resnet --data digits -o digits.safetensors",
        "bnfold train mlp --decay 0.9 --normalize --log runs/mlp --resume -o mlp.safetensors",
    ),
)
@click.argument("arch")
@output("the checkpoint")
@click.option(
    "--data", default="digits", show_default=True, metavar="NAME|PATH",
    help="digits (scikit-learn's, offline), a .npz of x and y, or a folder: MNIST, CIFAR, or images by class.",
)  # fmt: skip
@_options
@shown
def command(arch: str, output: str, data: str, kwargs: str | None, screen: Any, **options: Any) -> None:
    from rich.markup import escape

    from bnfold.files import check_output
    from bnfold.models.data import load
    from bnfold.models.recipe import momentum_of
    from bnfold.models.registry import architecture

    architecture(arch)
    check_output(output)
    keywords = json_object("--kwargs", kwargs)
    for name in keywords.keys() & {*_STYLE, "momentum", "normalize"}:
        raise InputError(f"--kwargs {kwargs}: {name} is an option of its own; give --{name}")
    keywords |= {name: options.pop(name) for name in _STYLE}
    momentum = momentum_of(options.pop("momentum"), options.pop("decay"))
    if momentum is not None:
        keywords["momentum"] = momentum
    dataset = load(data, seed=options["seed"])
    with screen.working("loading torch"):
        from bnfold.models.train import train
    done = train(arch, dataset, kwargs=keywords, note=screen.note, quiet=screen.quiet, **options)
    done.save(output)
    screen.result("train", {"output": output, **done.to_dict()}, escape(f"{done} → {output}"))
