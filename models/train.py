"""Train a registered architecture on real data: seeded, measured on held-out data, saved as one safe file."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import InputError, ProviderError, UsageError
from bnfold.models import registry
from bnfold.models.checkpoint import Checkpoint, Meta, load_checkpoint, save_checkpoint
from bnfold.models.data import Dataset, Images, Split, stratified
from bnfold.models.progress import Epoch, shown
from bnfold.models.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bnfold.models.tasks import Task

__all__ = ["Checkpoint", "Epoch", "Recipe", "TrainResult", "load_checkpoint", "predict", "train"]

VALIDATION = 0.1
"""The share of every class of the training part that early stopping watches, so that the held-out part stays unseen."""


@dataclass(frozen=True)
class TrainResult:
    """A trained module in eval mode on the CPU, its metadata, its epochs, and the seconds it took."""

    module: nn.Module
    meta: Meta
    history: tuple[Epoch, ...]
    seconds: float

    @property
    def score(self) -> float:
        """The score on the held-out data, 1 the best, in eval mode after training; `meta.metric` says of what kind."""
        return self.meta.score

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the checkpoint to `path`, whole or not at all; raises `OutputError`."""
        save_checkpoint(self.module, self.meta, path)

    def to_dict(self) -> dict[str, Any]:
        """Metadata, epochs and seconds as plain values for JSON."""
        return {
            **asdict(self.meta),
            "input_shape": list(self.meta.input_shape),
            "seconds": self.seconds,
            "history": [asdict(epoch) for epoch in self.history],
        }

    def __str__(self) -> str:
        meta = self.meta
        return f"{meta.arch} on {meta.data}: {meta.metric} {meta.score:.2%} on held-out data, {self.seconds:.0f} s"


def train(
    arch: str,
    data: Dataset,
    *,
    kwargs: Mapping[str, Any] | None = None,
    normalize: bool = False,
    reestimate: bool = False,
    log: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[Epoch], None] | None = None,
    note: Callable[[str], None] | None = None,
    quiet: bool = False,
    **recipe: Any,
) -> TrainResult:
    """Train the registered `arch` on `data.train` and measure it on `data.test`.

    AdamW, one learning-rate cycle, and the settings in `recipe`, which are `Recipe`'s; the loss is that of the
    architecture's task, whose examples are derived from `data`. The weights are those after the last epoch; with
    `patience` the best on a part of `data.train` that is set aside: the held-out data chooses nothing. `kwargs` go to
    the architecture beside what the data says. `normalize` puts the normalisation of the inputs into the model,
    `reestimate` takes BN's statistics anew from all of `data.train` in the end. `log` is a folder for metrics, BN's
    statistics and the state after every epoch, from which `resume` continues to the very same weights.

    The same arguments give the same weights on the same machine, thread count and version of torch; the caller's
    random state is left as it was. `progress` is called after every epoch in place of the bar or the lines on stderr;
    `note` with what the user should know, which is a warning without it. With several `devices` or `nodes` the script
    that calls this is started once for each, and only the first returns.

    Raises `UsageError` for arguments out of range or an unknown architecture, `InputError` for `kwargs` that it has not
    and data that does not fit its task, `ProviderError` for a device that is not there, `ModelError` where training
    diverges.

    >>> from bnfold.models.data import load
    >>> train("resnet", load("digits"), epochs=1).save("digits.safetensors")  # doctest: +SKIP
    """
    settings = Recipe(**recipe)
    if resume and log is None:
        raise UsageError("resume needs the log folder of the training that is to be continued")
    try:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from bnfold.models import loop
            from bnfold.models.log import MODEL, Log
            from bnfold.models.tasks import task
            from bnfold.models.watch import reestimate as estimate
    except ModuleNotFoundError as error:
        raise UsageError(f'training needs {error.name}: pip install "bnfold[train]"') from error
    target = _device(settings)
    goal = task(registry.architecture(arch).task)
    seen = _set_aside(data, settings) if settings.patience else data
    learnt = goal.data(seen)
    options = _options({"input_shape": learnt.input_shape, **goal.keywords(data)}, kwargs or {})
    if normalize:
        options["normalize"] = _moments(learnt.train)
    tell = note or (lambda text: warnings.warn(text, UserWarning, stacklevel=3))
    label = f"{'validation' if settings.patience else 'held-out'} {goal.metric}"
    on_gpu = [target] if target.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu), shown(progress, label, quiet=quiet or _follower()) as display:
        torch.manual_seed(settings.seed)
        module = registry.build(arch, **options)
        for text in settings.notes(options.get("norm", "batch"), options.get("momentum", 0.1)):
            tell(text)
        kept = Log(Path(log), _settings(arch, options, learnt, settings), resume=resume) if log is not None else None
        history = loop.fit(module, goal, learnt, settings, device=target, progress=display, log=kept)
    module = module.cpu().eval()
    if reestimate:
        estimate(module, learnt.train.images)
    result = TrainResult(module, _meta(arch, options, goal, data, settings, module), history, history[-1].seconds)
    if kept is not None:
        result.save(kept.folder / MODEL)
    return result


def predict(module: nn.Module, images: Images, *, batch_size: int = 256) -> npt.NDArray[np.float32]:
    """The module's outputs `(N, …)` for examples `(N, *input_shape)`, in eval mode, without gradients."""
    import torch

    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.inference_mode():
            parts = [
                module(torch.from_numpy(images[start : start + batch_size])).numpy()
                for start in range(0, len(images), batch_size)
            ]
    finally:
        for part, mode in modes:
            part.training = mode
    return np.concatenate(parts)


def _meta(arch: str, options: dict[str, Any], goal: Task, data: Dataset, recipe: Recipe, module: nn.Module) -> Meta:
    import torch

    test = goal.data(data).test
    return Meta(
        arch=arch,
        kwargs=options,
        input_shape=tuple(options["input_shape"]),
        data=data.name,
        data_seed=data.seed,
        seed=recipe.seed,
        epochs=recipe.epochs,
        score=goal.score(test.images, predict(module, test.images), test.labels),
        metric=goal.metric,
        torch=torch.__version__,
    )


def _set_aside(data: Dataset, recipe: Recipe) -> Dataset:
    """The data with a part of its training part in place of the held-out one."""
    train_rows, rows = stratified(data.train.labels, VALIDATION, recipe.seed)
    parts = [Split(data.train.images[index], data.train.labels[index]) for index in (train_rows, rows)]
    return replace(data, train=parts[0], test=parts[1])


def _moments(split: Split) -> dict[str, list[float]]:
    """Mean and deviation of every channel of the inputs; a channel that is constant keeps its scale."""
    axes = (0, *range(2, split.images.ndim))
    std = split.images.std(axis=axes, dtype=np.float64)
    return {
        "mean": [round(float(value), 6) for value in split.images.mean(axis=axes, dtype=np.float64)],
        "std": [round(float(value), 6) or 1.0 for value in std],
    }


def _settings(arch: str, options: dict[str, Any], data: Dataset, recipe: Recipe) -> dict[str, Any]:
    """All that decides what is learnt, by name."""
    digest = hashlib.sha256()
    for part in (data.train, data.test):
        digest.update(np.ascontiguousarray(part.images).tobytes())
        digest.update(np.ascontiguousarray(part.labels).tobytes())
    return {"architecture": arch, **options, **asdict(recipe), "data": data.name, "data's SHA-256": digest.hexdigest()}


def _options(known: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture's keywords, those `known` from the data among them, as the checkpoint will give them back."""
    try:
        options: dict[str, Any] = json.loads(json.dumps({**known, **kwargs}))
    except (TypeError, ValueError) as error:
        raise InputError(f"a checkpoint can't hold these arguments as JSON: {error}") from error
    for name, value in json.loads(json.dumps(known)).items():
        if options[name] != value:
            raise InputError(f"{name} is {options[name]}, but the data say {value}; leave it out")
    return options


def _follower() -> bool:
    """Whether this process is one of several, and not the first: it shows nothing."""
    from lightning.pytorch.utilities import rank_zero_only

    return bool(getattr(rank_zero_only, "rank", 0))


def _device(recipe: Recipe) -> torch.device:
    import torch

    name = recipe.device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device is called {name!r}; give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"can't train on {name!r}; give cpu, cuda or cuda:N")
    if device.index is not None and recipe.devices > 1:
        raise UsageError(f"{name} is one device; give cuda for {recipe.devices} of them")
    there = torch.cuda.device_count()
    if device.type == "cuda" and max((device.index or 0) + 1, recipe.devices) > there:
        raise ProviderError(f"the device {name} is not there (torch sees {there}); train on cpu")
    return device
