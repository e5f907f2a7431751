"""What is to be seen of a training: its epochs, BN's statistics on the way, and the activations around every norm.

A story is plain values, as JSON holds them; `bnfold.report.training` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import InputError, ModelError
from bnfold.models import registry
from bnfold.models.checkpoint import Checkpoint, load_checkpoint
from bnfold.models.data import Images, load
from bnfold.models.log import MODEL, STATE, read_metrics, read_records
from bnfold.models.state import read_state
from bnfold.models.watch import Record

if TYPE_CHECKING:
    from torch import Tensor, nn

BINS = 48
EXAMPLES = 512
"""Held-out examples that the distributions are taken from, at most."""

Story = dict[str, Any]


def story(sources: Sequence[str | Path], *, data: str | None = None) -> Story:
    """The story of trainings side by side; each source is a folder of `bnfold train --log`, or a checkpoint.

    `data` is what the activations are taken on where the checkpoint's own is not here. Raises `InputError` or
    `ModelError` for what is not there or damaged.
    """
    return {"runs": [_run(Path(source), data) for source in sources]}


def _run(source: Path, data: str | None) -> Story:
    if not source.exists():
        raise InputError(f"{source}: no such file; give a folder of `bnfold train --log`, or a checkpoint")
    logged = source.is_dir()
    path = source / MODEL if logged else source
    checkpoint = load_checkpoint(path) if path.exists() else None
    history = read_metrics(source) if logged else []
    settings = read_state(source / STATE).get("settings", {}) if logged else {}
    known = {**(checkpoint.meta.kwargs if checkpoint else {}), **settings}
    arch = checkpoint.meta.arch if checkpoint else settings.get("architecture")
    if not isinstance(arch, str):
        raise ModelError(f"{source}: does not say what was trained; train it again")
    activations, why = _activations(checkpoint, data) if checkpoint else ([], "the training is not finished")
    return {
        "name": source.name,
        "architecture": arch,
        "norm": known.get("norm", "batch"),
        "position": known.get("position", "before"),
        "momentum": known.get("momentum", 0.1),
        "batch_size": known.get("batch_size"),
        "lr": known.get("lr"),
        "data": known.get("data", checkpoint.meta.data if checkpoint else None),
        "metric": checkpoint.meta.metric if checkpoint else "score",
        "score": checkpoint.meta.score if checkpoint else (history[-1].score if history else None),
        "finished": checkpoint is not None,
        "epochs": [{"number": epoch.number, "loss": epoch.loss, "score": epoch.score} for epoch in history],
        "statistics": _statistics(read_records(source) if logged else []),
        "activations": activations,
        "why_none": why,
    }


def _statistics(records: Sequence[Record]) -> list[Story]:
    """Column by column, layer by layer, in the order of the net."""
    layers = list(dict.fromkeys(record.layer for record in records))
    names = ("step", "gap", "ratio", "batch_mean", "running_mean", "batch_var", "running_var")
    return [
        {"layer": layer, **{name: [getattr(row, name) for row in records if row.layer == layer] for name in names}}
        for layer in layers
    ]


def _activations(checkpoint: Checkpoint, data: str | None) -> tuple[list[Story], str]:
    """The distributions around every norm on held-out examples, or why there are none."""
    from bnfold.models.tasks import task

    meta = checkpoint.meta
    source = data or meta.data
    if source != "digits" and not Path(source).exists():
        return [], f"its data {source} is not here; name it with --data"
    examples = task(registry.architecture(meta.arch).task).data(load(source, seed=meta.data_seed)).test.images
    if examples.shape[1:] != meta.input_shape:
        raise InputError(f"{source}: examples are {examples.shape[1:]}, but the model takes {meta.input_shape}")
    return distributions(checkpoint.module, examples[:EXAMPLES]), ""


def distributions(module: nn.Module, examples: Images) -> list[Story]:
    """Inputs and outputs of every norm, or where one would stand, in eval mode: histograms, channels' moments.

    `(N, *input_shape)` → one entry a norm, in the order of the net.
    """
    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    from bnfold.models.modules import eval_mode
    from bnfold.models.style import NoNorm

    seen: list[Story] = []

    def hook(name: str) -> Any:
        def look(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append({"layer": name, "before": _spread(inputs[0]), "after": _spread(output)})

        return look

    kinds = (_BatchNorm, nn.GroupNorm, NoNorm)
    norms = [(name, part) for name, part in module.named_modules() if isinstance(part, kinds)]
    hooks = [part.register_forward_hook(hook(name)) for name, part in norms]
    try:
        with eval_mode(module), torch.no_grad():
            module(torch.from_numpy(examples))
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def _spread(x: Tensor) -> Story:
    """Histogram of all values, and each channel's mean and deviation."""
    values = x.detach().float().transpose(0, 1).flatten(1).numpy()
    low, high = (float(np.quantile(values, share)) for share in (0.001, 0.999))
    density, edges = np.histogram(values, bins=BINS, range=(low, max(high, low + 1e-6)), density=True)
    return {
        "centres": [float(value) for value in (edges[1:] + edges[:-1]) / 2],
        "density": [float(value) for value in density],
        "means": [float(value) for value in values.mean(axis=1)],
        "deviations": [float(value) for value in values.std(axis=1)],
    }
