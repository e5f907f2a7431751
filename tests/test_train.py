"""Training: what it learns, what it refuses, how it is continued, and its checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bnfold.errors import BnfoldError, InputError, ModelError, OutputError, ProviderError, UsageError
from bnfold.models import data, registry

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
safetensors_torch = pytest.importorskip("safetensors.torch")

from bnfold.models.checkpoint import load_checkpoint  # noqa: E402
from bnfold.models.train import TrainResult, predict, train  # noqa: E402
from tests.conftest import Outcome  # noqa: E402


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def small(digits: data.Dataset) -> data.Dataset:
    """A sixth of the digits: enough to move every statistic."""
    return replace(digits, train=data.Split(digits.train.images[::6], digits.train.labels[::6]))


@pytest.fixture(scope="module")
def trained(small: data.Dataset) -> TrainResult:
    return train("mlp", small, epochs=2, seed=3, quiet=True)


# Training


@pytest.mark.slow
def test_resnet_learns_the_digits(digits: data.Dataset) -> None:
    result = train("resnet", digits, epochs=12, quiet=True)
    assert result.score >= 0.97
    right = predict(result.module, digits.test.images).argmax(1) == digits.test.labels
    assert result.score == right.mean() == pytest.approx(result.history[-1].score)


def test_same_seed_same_weights_and_the_callers_random_state_untouched(
    small: data.Dataset, trained: TrainResult
) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = train("mlp", small, epochs=2, seed=3, quiet=True)
    assert torch.equal(torch.get_rng_state(), before)
    other = train("mlp", small, epochs=2, seed=4, quiet=True)
    state = trained.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.module.state_dict().items())
    assert not torch.equal(other.module.state_dict()["head.weight"], state["head.weight"])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"epochs": 0}, UsageError, "epochs is 0"),
        ({"lr": float("nan")}, UsageError, "lr is nan"),
        ({"lr": -1.0}, UsageError, "lr is -1"),
        ({"batch_size": 1}, UsageError, "two examples"),
        ({"weight_decay": float("inf")}, UsageError, "weight decay"),
        ({"seed": -1}, UsageError, "seed is -1"),
        ({"device": "gpu"}, UsageError, "cpu, cuda"),
        ({"device": "meta"}, UsageError, "can't train"),
        ({"device": "cuda:99"}, ProviderError, "not there"),
        ({"kwargs": {"depth": 3}}, InputError, "'depth'"),
        ({"kwargs": {"classes": 2}}, InputError, "classes is 2, but the data say 10"),
        ({"kwargs": {"hidden": {1, 2}}}, InputError, "as JSON"),
        ({"lr": 1e30}, ModelError, "diverged in epoch 1"),
    ],
)
def test_train_refuses(small: data.Dataset, arguments: dict[str, object], error: type[BnfoldError], says: str) -> None:
    with pytest.raises(error, match=says):
        train("mlp", small, **{"epochs": 1, "quiet": True, **arguments})


def test_a_last_batch_of_one_is_left_out(digits: data.Dataset) -> None:
    odd = replace(digits, train=data.Split(digits.train.images[:17], digits.train.labels[:17]))
    assert len(train("mlp", odd, epochs=1, batch_size=8, quiet=True, note=lambda text: None).history) == 1


def test_shows_one_line_an_epoch_and_nothing_else(
    small: data.Dataset, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train("mlp", small, epochs=2)
    out, err = capfd.readouterr()
    assert out == "" and [line.split("  ")[0] for line in err.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    train("mlp", small, epochs=1, quiet=True)
    seen: list[int] = []
    train("mlp", small, epochs=2, progress=lambda epoch: seen.append(epoch.number))
    assert capfd.readouterr() == ("", "") and seen == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_shows_a_bar_on_a_terminal(
    small: data.Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    train("mlp", small, epochs=2)
    out, err = capsys.readouterr()
    assert out == "" and "training" in err and "100%" in err and "epoch 2/2" in err


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_own_code(number: signal.Signals, code: int, tmp_path: Path) -> None:
    script = """
import sys
from bnfold.models import data, train
try:
    train.train("mlp", data.load("digits"), epochs=100000).save("out.safetensors")
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process:
        assert process.stderr.readline().startswith("epoch 1/")
        process.send_signal(number)
        deadline = time.monotonic() + 30
        rest = process.stderr.read()
        assert process.wait(max(1, deadline - time.monotonic())) == code
    assert "Traceback" not in rest and list(tmp_path.iterdir()) == []


# Checkpoints


def test_a_checkpoint_gives_the_same_predictions(tmp_path: Path, trained: TrainResult, digits: data.Dataset) -> None:
    trained.save(tmp_path / "c.safetensors")
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded.meta == trained.meta and not any(part.training for part in loaded.module.modules())
    assert loaded.meta.torch == torch.__version__ and loaded.meta.seed == 3 and loaded.meta.input_shape == (1, 8, 8)
    images = digits.test.images
    np.testing.assert_array_equal(predict(loaded.module, images), predict(trained.module, images))
    assert data.accuracy(predict(loaded.module, images), digits.test.labels) == loaded.meta.score
    assert json.loads(json.dumps(trained.to_dict()))["score"] == trained.score
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_predict_restores_each_mode(trained: TrainResult, digits: data.Dataset) -> None:
    module = registry.build("mlp")
    module.head.eval()
    modes = [part.training for part in module.modules()]
    mean = next(part for part in module.modules() if hasattr(part, "running_mean")).running_mean.clone()
    predict(module, digits.test.images[:2])
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(next(p for p in module.modules() if hasattr(p, "running_mean")).running_mean, mean)


@pytest.mark.parametrize("where", ["folder", "none/c.safetensors"])
def test_an_unwritable_place_is_an_output_error(tmp_path: Path, trained: TrainResult, where: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        trained.save(tmp_path / where)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_a_failing_write_keeps_the_old_checkpoint(
    tmp_path: Path, trained: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def rewritten(path: Path, **changes: object) -> bytes:
    """The checkpoint with other metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        meta = {**json.loads(file.metadata()["bnfold.checkpoint"]), **changes}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return safetensors_torch.save(tensors, {"bnfold.checkpoint": json.dumps(meta)})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda whole, path: b"", "damaged, or no safetensors file"),
        (lambda whole, path: b"just text", "damaged, or no safetensors file"),
        (lambda whole, path: whole[: len(whole) // 2], "damaged, or no safetensors file"),
        (lambda whole, path: b"\xff" * 8 + whole[8:], "damaged, or no safetensors file"),
        (lambda whole, path: safetensors_torch.save({"a": torch.zeros(1)}), "not a checkpoint of `bnfold train`"),
        (lambda whole, path: safetensors_torch.save({}, {"bnfold.checkpoint": "{"}), "metadata is damaged"),
        (lambda whole, path: safetensors_torch.save({}, {"bnfold.checkpoint": "[1]"}), "metadata is damaged"),
        (lambda whole, path: rewritten(path, version=99), "upgrade bnfold"),
        (lambda whole, path: rewritten(path, input_shape="abc"), "metadata is damaged"),
        (lambda whole, path: rewritten(path, kwargs=[]), "metadata is damaged"),
        (lambda whole, path: rewritten(path, arch="os.system"), "can't be built here"),
        (lambda whole, path: rewritten(path, kwargs={"hidden": [10**9, 10**9]}), "trained with"),
        (lambda whole, path: rewritten(path, kwargs={"hidden": [128]}), "holds body"),
        (lambda whole, path: rewritten(path, kwargs={"hidden": [128, 64, 32]}), "lacks body"),
    ],
)
def test_a_bad_checkpoint_is_one_line(tmp_path: Path, trained: TrainResult, damage: object, says: str) -> None:
    path = tmp_path / "c.safetensors"
    trained.save(path)
    path.write_bytes(damage(path.read_bytes(), path))  # type: ignore[operator]
    with pytest.raises(ModelError, match=says) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(ModelError, match="is not a file"):
        load_checkpoint(tmp_path)


# The command line


def test_the_options_reach_the_training(bnfold: Callable[..., Outcome], tmp_path: Path) -> None:
    words = "train mlp --epochs 1 --batch-size 8 --momentum 0.95 --position after --dropout 0.25 --normalize"
    more = ("--kwargs", '{"hidden": [16]}', "--clip-grad", "1", "-o", tmp_path / "c.safetensors", "--json")
    done = bnfold(*words.split(), *more)
    assert done.code == 0, done.err
    assert done.err.count("bnfold: note: ") == 2
    assert "batches of 8" in done.err and "momentum 0.95 is PyTorch's" in done.err
    meta = load_checkpoint(tmp_path / "c.safetensors").meta
    kwargs = json.loads(done.out)["kwargs"]
    assert kwargs == meta.kwargs and kwargs["hidden"] == [16] and kwargs["momentum"] == 0.95
    assert (kwargs["position"], kwargs["dropout"]) == ("after", 0.25) and len(kwargs["normalize"]["mean"]) == 1
    module = load_checkpoint(tmp_path / "c.safetensors").module
    assert [type(part).__name__ for part in module.module.body] == ["Flatten", "Linear", "ReLU", "BatchNorm1d"]


def test_a_decay_is_one_minus_the_momentum(bnfold: Callable[..., Outcome], tmp_path: Path) -> None:
    done = bnfold("train", "mlp", "--epochs", "1", "--decay", "0.75", "-o", tmp_path / "c.safetensors", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert load_checkpoint(tmp_path / "c.safetensors").module.body[2].momentum == 0.25


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("mlp", "--kwargs", "{"), 4, "write it like --kwargs"),
        (("mlp", "--kwargs", "[1]"), 4, "is no JSON object"),
        (("mlp", "--kwargs", '{"depth": 3}'), 4, "'depth'; it takes input_shape, classes, hidden, norm"),
        (("mlp", "--kwargs", '{"hidden": [-1]}'), 4, "hidden is [-1]; give a list of whole numbers from 1"),
        (("mlp", "--kwargs", '{"classes": 2}'), 4, "classes is 2, but the data say 10; leave it out"),
        (("mlp", "--kwargs", '{"norm": "group"}'), 4, "norm is an option of its own; give --norm"),
        (("mlp", "--norm", "power"), 2, "batch, layer, group, instance, none"),
        (("mlp", "--momentum", "0.1", "--decay", "0.9"), 2, "the same thing twice"),
        (("mlp", "--momentum", "2"), 2, "above 0, at most 1"),
        (("mlp", "--resume"), 2, "needs the log folder"),
        (("mlp", "--data", "none.npz"), 4, "no such file"),
        (("unet", "--data", "flat.npz"), 4, "to segment takes images"),
        (("mlp", "--log", "flat.npz"), 4, "can't be made"),
    ],
)
def test_what_the_command_refuses(
    words: tuple[str, ...], code: int, says: str, bnfold: Callable[..., Outcome], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez("flat.npz", x=np.zeros((8, 5), np.float32), y=np.arange(8) % 2)
    done = bnfold("train", *words, "-o", "c.safetensors")
    assert done.code == code and says in done.err and done.err.startswith("bnfold: ") and done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["flat.npz"]
