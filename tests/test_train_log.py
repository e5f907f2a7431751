"""Continuing a training bit for bit, in several processes, and what is logged of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.errors import BnfoldError, InputError, ModelError, UsageError
from bnfold.models import data

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
safetensors_torch = pytest.importorskip("safetensors.torch")

from bnfold.models import log, state, watch  # noqa: E402
from bnfold.models.checkpoint import load_checkpoint  # noqa: E402
from bnfold.models.feed import Batches  # noqa: E402
from bnfold.models.train import TrainResult, train  # noqa: E402


@pytest.fixture(scope="module")
def small() -> data.Dataset:
    digits = data.load("digits")
    return replace(digits, train=data.Split(digits.train.images[::6], digits.train.labels[::6]))


def same(left: TrainResult, right: TrainResult) -> bool:
    """Every weight, every statistic and every figure of the history, to the last bit; the clock apart."""
    a, b = left.module.state_dict(), right.module.state_dict()
    history = [[replace(epoch, seconds=0.0) for epoch in result.history] for result in (left, right)]
    return all(torch.equal(value, b[name]) for name, value in a.items()) and history[0] == history[1]


def interrupted(small: data.Dataset, folder: Path, after: int, **options: Any) -> None:
    """A training that ends, as on Ctrl-C, when one more than `after` epochs are done and `after` are saved."""

    def stop(epoch: Any) -> None:
        if epoch.number > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data=small, log=folder, progress=stop, **options)


# Resume


@pytest.mark.parametrize(
    "options",
    [
        {"kwargs": {"dropout": 0.3}},
        {"kwargs": {"norm": "group"}, "clip_grad": 0.5},
        {"precision": "bf16"},
        {"patience": 2, "lr": 0.05},
        {"arch": "crnn"},
    ],
    ids=str,
)
def test_a_continued_training_is_the_uninterrupted_one_to_the_last_bit(
    options: dict[str, Any], small: data.Dataset, tmp_path: Path
) -> None:
    options = {"arch": "lenet", "epochs": 4, "seed": 5, **options}
    whole = train(data=small, quiet=True, **options)
    interrupted(small, tmp_path / "log", 2, **options)
    assert not (tmp_path / "log" / log.MODEL).exists()
    # What happens between the two must not matter.
    torch.manual_seed(99)
    torch.rand(3)
    continued = train(data=small, quiet=True, log=tmp_path / "log", resume=True, **options)
    assert same(whole, continued) and whole.meta == continued.meta
    logged = [replace(epoch, seconds=0.0) for epoch in log.read_metrics(tmp_path / "log")]
    assert logged == [replace(epoch, seconds=0.0) for epoch in whole.history]
    steps = [(record.step, record.layer) for record in log.read_records(tmp_path / "log")]
    assert len(steps) == len(set(steps)) and steps == sorted(steps, key=lambda row: row[0])
    # And a finished one is only read.
    again = train(data=small, quiet=True, log=tmp_path / "log", resume=True, **options)
    assert same(whole, again)
    assert {path.name for path in (tmp_path / "log").iterdir()} <= {log.METRICS, log.STATISTICS, log.STATE, log.MODEL}
    assert load_checkpoint(tmp_path / "log" / log.MODEL).meta == whole.meta


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.02}, "begun with lr 0.01, not 0.02"),
        ({"kwargs": {"norm": "group"}}, "begun with norm None, not group"),
        ({"epochs": 3}, "begun with epochs 2, not 3"),
        ({"arch": "lenet"}, "architecture mlp, not lenet"),
        ({"resume": False}, "give --resume to continue it"),
        ({"log": None}, "needs the log folder"),
    ],
)
def test_only_the_same_training_is_continued(
    changes: dict[str, Any], says: str, small: data.Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"arch": "mlp", "epochs": 2, "log": tmp_path / "log", "quiet": True}
    train(data=small, **options)
    with pytest.raises(UsageError, match=says):
        train(data=small, **{**options, "resume": True, **changes})


def test_other_data_is_not_the_same_training(small: data.Dataset, tmp_path: Path) -> None:
    train("mlp", small, epochs=1, log=tmp_path, quiet=True)
    images = small.train.images.copy()
    images[0, 0, 0, 0] += 0.5
    with pytest.raises(UsageError, match="data's SHA-256"):
        other = replace(small, train=data.Split(images, small.train.labels))
        train("mlp", other, epochs=1, log=tmp_path, resume=True, quiet=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged, or no safetensors file"),
        (safetensors_torch.save({"a": torch.zeros(1)}), "not the state of a training"),
        (safetensors_torch.save({}, {"bnfold.state": "{"}), "state is damaged"),
        (safetensors_torch.save({}, {"bnfold.state": '{"tensor": "7"}'}), "state is damaged"),
        (safetensors_torch.save({}, {"bnfold.state": '{"dict": [["settings", 3]]}'}), "not the state"),
        (b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", "damaged, or no safetensors file"),
    ],
)
def test_a_damaged_state_is_one_line_and_runs_nothing(
    content: bytes, says: str, small: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / log.STATE).write_bytes(content)
    with pytest.raises(ModelError, match=says) as caught:
        train("mlp", small, log=tmp_path, resume=True, quiet=True)
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == [log.STATE]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    tree = {
        "tensors": [torch.arange(3), (torch.zeros(2, dtype=torch.bfloat16), None)],
        7: {"tensor": 0.1 + 0.2, "nan": float("inf"), "dict": [True, "text", (1,)]},
    }
    state.SafeIO().save_checkpoint(tree, tmp_path / "s")
    back = state.read_state(tmp_path / "s")
    assert torch.equal(back["tensors"][0], tree["tensors"][0]) and back["tensors"][1][0].dtype == torch.bfloat16
    assert back[7] == tree[7] and isinstance(back["tensors"][1], tuple)
    with pytest.raises(TypeError, match="Path"):
        state.SafeIO().save_checkpoint({"path": tmp_path}, tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("length", "size", "world"), [(20, 8, 1), (20, 8, 2), (17, 8, 1), (18, 8, 4), (7, 8, 1), (1, 8, 1)]
)
def test_the_batches_of_an_epoch(length: int, size: int, world: int) -> None:
    """All processes together see every row once; each its own; a rest that BN can't normalise is left out."""
    each = [Batches(length, size, seed=3, rank=rank, world=world) for rank in range(world)]
    shares = [list(batches) for batches in each]
    steps = list(zip(*shares, strict=True))
    assert len(steps) == len(each[0])
    rows = [row for step in steps for part in step for row in part]
    rest = length % size
    kept = length - rest + (rest // world * world if rest >= max(2, world) else 0)
    assert len(rows) == len(set(rows)) == kept and set(rows) <= set(range(length))
    assert all(len({len(part) for part in step}) == 1 for step in steps)


def test_every_epoch_has_an_order_of_its_own_and_always_the_same() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = Batches(40, 8, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)
    together = [Batches(40, 8, seed=0, rank=rank, world=2) for rank in (0, 1)]
    pairs = zip(*together, strict=True)
    assert [sorted(a + b) for a, b in pairs] == [sorted(batch) for batch in order(0, 0)]


# The log


def test_the_log_shows_the_average_following_the_batches(small: data.Dataset, tmp_path: Path) -> None:
    kept = train("mlp", small, epochs=6, log=tmp_path, quiet=True)
    plain = train("mlp", small, epochs=6, quiet=True)
    assert same(kept, plain)  # to look changes nothing
    records = [record for record in log.read_records(tmp_path) if record.layer == "body.2"]
    assert [record.step for record in records] == sorted(watch.recorded_steps(6 * 4) & set(range(24)))
    first, second = records[:2]
    assert (first.running_mean, first.running_var) == (0, 1)
    # PyTorch's momentum of 0.1: a tenth of the way at each step.
    assert second.running_mean == pytest.approx(0.1 * first.batch_mean, rel=1e-4)
    assert second.running_var == pytest.approx(0.9 + 0.1 * first.batch_var, rel=1e-4)
    # The running variance starts at 1, far from the batch's, and comes nearer.
    assert first.ratio < 0.1 and records[-1].ratio > 5 * first.ratio


def test_recorded_steps_are_dense_at_first_and_few() -> None:
    steps = sorted(watch.recorded_steps(100_000))
    assert steps[:5] == [0, 1, 2, 3, 4] and steps[-1] == 99_999 and len(steps) <= watch.RECORDS


@pytest.mark.parametrize(
    "content", ["", "number,epochs\n1,2\n", "number,epochs,loss,score,seconds\n1,2,x,0,0\n", "\x00"]
)
def test_a_damaged_table_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / log.METRICS).write_text(content)
    with pytest.raises(InputError, match="damaged"):
        log.read_metrics(tmp_path)


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        log.read_metrics(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(BnfoldError, match="can't be made"):
        train("mlp", data.load("digits"), epochs=1, log=tmp_path / "file", quiet=True)


# Several processes


@pytest.mark.slow
def test_two_processes_learn_what_one_does(small: data.Dataset, tmp_path: Path) -> None:
    """BN over both halves of every batch, gradients averaged: the same training, up to rounding."""
    count = 192  # whole batches, so that both processes see the same examples
    np.savez(
        tmp_path / "d.npz", x_train=small.train.images[:count], y_train=small.train.labels[:count],
        x_test=small.test.images, y_test=small.test.labels,
    )  # fmt: skip
    one = train(
        "lenet", data.load(tmp_path / "d.npz"), epochs=2, lr=0.001, batch_size=32, log=tmp_path / "log1", quiet=True
    )
    words = "lenet --data d.npz --epochs 2 --lr 0.001 --batch-size 32 --devices 2 --log log2 -o 2.safetensors --json"
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "train", *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch ") == 2, "only the first process shows its progress"
    losses = [epoch["loss"] for epoch in json.loads(done.stdout)["history"]]
    assert losses == pytest.approx([epoch.loss for epoch in one.history], rel=1e-3)
    other = load_checkpoint(tmp_path / "2.safetensors").module.state_dict()
    for name, value in one.module.state_dict().items():
        np.testing.assert_allclose(other[name], value, rtol=1e-2, atol=2e-3, err_msg=name)
    assert sorted(path.name for path in (tmp_path / "log2").iterdir()) == sorted(
        [log.METRICS, log.STATISTICS, log.STATE, log.MODEL]
    )


def two_halves(folder: Path, rank: int) -> None:
    """One of two processes: its half of a batch through BN over both, and back; the results go to a file."""
    from bnfold.models.sync import Synced

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    norm = torch.nn.BatchNorm2d(3, momentum=0.3)
    sync = Synced()
    model = sync.apply(torch.nn.Sequential(norm))
    x = whole_batch()[rank::2].requires_grad_()
    out = model(x)
    out.pow(3).sum().backward()
    torch.distributed.all_reduce(norm.weight.grad)
    sync.revert(model)
    assert type(norm) is torch.nn.BatchNorm2d
    torch.save([out.detach(), x.grad, norm.weight.grad, norm.running_mean, norm.running_var], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def whole_batch() -> Any:
    return 3 + 2 * torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_bn_over_two_processes_is_bn_of_the_whole_batch(tmp_path: Path) -> None:
    """Output, gradients and running statistics, against PyTorch's own BN in one process."""
    import torch.multiprocessing as processes

    context = processes.spawn(_half, args=(tmp_path,), nprocs=2, join=False)
    while not context.join():
        pass
    norm, x = torch.nn.BatchNorm2d(3, momentum=0.3), whole_batch().requires_grad_()
    out = norm(x)
    out.pow(3).sum().backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        expected = [out.detach()[rank::2], x.grad[rank::2], norm.weight.grad, norm.running_mean, norm.running_var]
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def _half(rank: int, folder: Path) -> None:
    two_halves(folder, rank)
