"""The training loop, on Lightning."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from bnfold.errors import ModelError
from bnfold.models.data import Dataset
from bnfold.models.feed import Batches, loader
from bnfold.models.log import Log
from bnfold.models.progress import Epoch, Progress
from bnfold.models.recipe import PRECISIONS, Recipe
from bnfold.models.state import SafeIO
from bnfold.models.sync import Synced
from bnfold.models.tasks import Task
from bnfold.models.watch import Watch


class Learner(pl.LightningModule):
    """A task's loss, AdamW, and a one-cycle learning rate (Smith & Topin 2018, https://arxiv.org/abs/1708.07120)."""

    def __init__(
        self, module: nn.Module, task: Task, data: Dataset, recipe: Recipe, progress: Progress, log: Log | None
    ) -> None:
        super().__init__()
        self.module = module
        self.history: list[Epoch] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.watch: Watch | None = None
        self._task, self._data, self._recipe, self._progress, self._kept = task, data, recipe, progress, log
        self._start = time.monotonic()
        self._total = 0
        self._score = 0.0
        self._sums = torch.zeros(2)
        self._outputs: list[Tensor] = []
        self._random: dict[str, Tensor] = {}

    def train_dataloader(self) -> Any:
        """This process's share of every batch."""
        size = min(self._recipe.batch_size, len(self._data.train))
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return loader(
            self._data.train, Batches(len(self._data.train), size, seed=self._recipe.seed, rank=rank, world=world)
        )

    def val_dataloader(self) -> Any:
        """All of the held-out data in every process: no score needs to be put together from parts."""
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(self._data.test.images)), 256, generator=torch.Generator()
        )

    def configure_optimizers(self) -> Any:
        """AdamW; biases, gammas and betas are not decayed: decay would only shrink what BN rescales."""
        parameters = list(self.module.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self._recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._total = int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self._recipe.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self._recipe.lr, total_steps=self._total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Look at the BNs where it is logged; go on with the random numbers where the state was saved."""
        if self._kept is not None and self.global_rank == 0:
            self.watch = Watch(self.module, self._total)
            # The tables may be one epoch ahead of the state.
            self.watch.records += [record for record in self._kept.records if record.step < self.global_step]
        if self._random:
            torch.set_rng_state(self._random["cpu"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(self._random["cuda"], self.device)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's sums; they stay on the device, so that no step waits for it."""
        self._sums = torch.zeros(2, device=self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Tell the watch the time."""
        if self.watch is not None:
            self.watch.step = self.global_step

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Examples `(N, *input_shape)` and targets `(N, …)` → mean loss `()`."""
        examples, targets = batch
        loss = self._task.loss(self.module(examples), targets)
        self._sums = self._sums + torch.stack((loss.detach() * len(examples), loss.new_tensor(len(examples))))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar."""
        self._progress.step(self.global_step, self._total)

    def on_validation_epoch_start(self) -> None:
        """Start with nothing."""
        self._outputs = []

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Keep the outputs; Lightning has put the module into eval mode."""
        self._outputs.append(self.module(batch[0]).float().cpu())

    def on_validation_epoch_end(self) -> None:
        """Judge the epoch, before early stopping does."""
        test = self._data.test
        score = self._task.score(test.images, torch.cat(self._outputs).numpy(), test.labels)
        self.log("score", torch.tensor(score, dtype=torch.float64))
        if self._recipe.patience and (self.best is None or score > self.best[0]):
            self.best = (score, {name: value.clone() for name, value in self.module.state_dict().items()})
        self._score = score

    def on_train_epoch_end(self) -> None:
        """Record and show the epoch. Raises `ModelError` where the loss is no longer finite."""
        total, seen = self.trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        epoch = Epoch(
            number=self.current_epoch + 1,
            epochs=int(self.trainer.max_epochs or 0),
            loss=total / max(seen, 1),
            score=self._score,
            seconds=time.monotonic() - self._start,
        )
        if not math.isfinite(total):
            raise ModelError(f"training diverged in epoch {epoch.number} (loss {epoch.loss}); lower the learning rate")
        self.history.append(epoch)
        if self._kept is not None and self.watch is not None:
            self._kept.write(self.history, self.watch.records)
        self._progress.epoch(epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of: history, best weights, and where the random numbers are."""
        checkpoint["history"] = [asdict(epoch) for epoch in self.history]
        checkpoint["best"] = self.best
        checkpoint["random"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        if self._kept is not None:
            checkpoint["settings"] = self._kept.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self.history = [Epoch(**epoch) for epoch in checkpoint["history"]]
        self.best = checkpoint["best"]
        self._random = checkpoint["random"]
        self._start -= self.history[-1].seconds if self.history else 0.0


class _Keep(Checkpoint):
    """Writes the state after every epoch; a `Checkpoint`, so that Lightning calls it after all others."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self._path)


def fit(
    module: nn.Module,
    task: Task,
    data: Dataset,
    recipe: Recipe,
    *,
    device: torch.device,
    progress: Progress,
    log: Log | None = None,
) -> tuple[Epoch, ...]:
    """Train `module` in place and return its epochs; draws from torch's global generator, writes to `log` alone.

    Of several processes only the first returns. Raises `ModelError` where the loss diverges, `KeyboardInterrupt` or
    `SystemExit(143)` on a signal.
    """
    learner = Learner(module, task, data, recipe, progress, log)
    callbacks: list[pl.Callback] = []
    if recipe.patience:
        callbacks.append(EarlyStopping("score", mode="max", patience=recipe.patience, check_finite=False))
    if log is not None:
        callbacks.append(_Keep(log.state))
    several = recipe.devices * recipe.nodes > 1
    plugins: list[Any] = [SafeIO()]
    if several and device.type == "cpu":
        plugins.append(Synced())
    with _quiet(), _interruptible():
        trainer = pl.Trainer(
            max_epochs=recipe.epochs,
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index] if device.index is not None else recipe.devices,
            num_nodes=recipe.nodes,
            strategy="ddp" if several else "auto",
            sync_batchnorm=several and device.type != "cpu",
            use_distributed_sampler=False,
            precision=PRECISIONS[recipe.precision],
            gradient_clip_val=recipe.clip_grad or None,
            plugins=plugins,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=log is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(learner, ckpt_path=str(log.state) if log is not None and log.resumed else None)
    if learner.watch is not None:
        learner.watch.close()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if trainer.global_rank:
        # The first process alone goes on, to what is printed and written.
        raise SystemExit(0)
    if learner.best is not None:
        module.load_state_dict(learner.best[1])
    return tuple(learner.history)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's hints and advertisements are no concern of a user who did not choose it."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM as everywhere else: Lightning turns the one into exit code 1, the other into 0."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise SystemExit(143) from None
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
