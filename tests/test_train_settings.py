"""What the settings of a training do to it, and BN's lessons: momentum either way round, small batches, statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bnfold.errors import InputError, UsageError
from bnfold.models import data
from bnfold.models.recipe import Recipe, momentum_of

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from bnfold.models import watch  # noqa: E402
from bnfold.models.train import train  # noqa: E402


@pytest.fixture(scope="module")
def small() -> data.Dataset:
    digits = data.load("digits")
    return replace(digits, train=data.Split(digits.train.images[::6], digits.train.labels[::6]))


# Settings


def test_early_stopping_keeps_the_best_and_leaves_the_held_out_data_alone(small: data.Dataset) -> None:
    result = train("mlp", small, epochs=30, patience=2, quiet=True)
    scores = [epoch.score for epoch in result.history]
    assert len(scores) < 30 and scores.index(max(scores)) == len(scores) - 3
    shuffled = np.random.default_rng(0).permutation(small.test.labels)
    unlike = replace(small, test=data.Split(small.test.images, shuffled))
    other = train("mlp", unlike, epochs=30, patience=2, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(result.module.parameters(), other.module.parameters(), strict=True))
    assert other.score < 0.3 < result.score


@pytest.mark.parametrize("options", [{"clip_grad": 1e-4}, {"weight_decay": 0.5}, {"kwargs": {"dropout": 0.5}}])
def test_a_setting_changes_what_is_learnt(options: dict[str, Any], small: data.Dataset) -> None:
    plain, other = (train("mlp", small, epochs=1, quiet=True, **extra) for extra in ({}, options))
    assert not all(torch.equal(a, b) for a, b in zip(plain.module.parameters(), other.module.parameters(), strict=True))


def test_clipped_gradients_are_no_longer_than_asked(small: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def look(self: Any, closure: Any = None) -> Any:
        done = step(self, closure)
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", look)
    train("mlp", small, epochs=1, clip_grad=0.01, quiet=True)
    assert norms and max(norms) <= 0.01 + 1e-6


def test_half_precision_computes_in_it_and_keeps_float32_weights(small: data.Dataset) -> None:
    seen: set[Any] = set()
    linear = torch.nn.Linear.forward

    def look(self: Any, x: Any) -> Any:
        out = linear(self, x)
        seen.add(out.dtype)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", look)
        result = train("mlp", small, epochs=2, precision="bf16", quiet=True)
    assert torch.bfloat16 in seen and {p.dtype for p in result.module.parameters()} == {torch.float32}
    assert result.score > 0.8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"clip_grad": -1.0}, "clip grad is -1"),
        ({"patience": -1}, "patience is -1"),
        ({"precision": "8"}, "one of 32, bf16, 16"),
        ({"precision": "16"}, "a CPU computes with 32 or bf16"),
        ({"devices": 0}, "devices is 0"),
        ({"nodes": 0}, "nodes is 0"),
        ({"devices": 3}, "a multiple of 3 processes"),
    ],
)
def test_settings_out_of_range(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Recipe(**arguments)


def test_a_task_refuses_data_that_it_cannot_use() -> None:
    rng = np.random.default_rng(0)
    split = data.Split(rng.random((8, 5), np.float32), np.arange(8) % 2)
    with pytest.raises(InputError, match=r"segment takes images"):
        train("unet", data.Dataset("d", split, split), quiet=True)


# BN's lessons


@pytest.mark.parametrize(
    ("given", "momentum"), [((None, None), None), ((0.1, None), 0.1), ((None, 0.9), 0.1), ((None, 0.99), 0.01)]
)
def test_both_conventions_of_momentum(given: tuple[float | None, float | None], momentum: float | None) -> None:
    assert momentum_of(*given) == momentum


def test_the_conventions_are_what_pytorch_computes() -> None:
    """running = decay·running + (1 − decay)·batch."""
    norm = torch.nn.BatchNorm1d(1, momentum=momentum_of(decay=0.75))
    norm(torch.tensor([[3.0], [5.0]]))
    assert norm.running_mean.item() == pytest.approx(0.75 * 0 + 0.25 * 4)


@pytest.mark.parametrize("given", [(0.1, 0.9), (None, 1.0), (None, -0.1)])
def test_momentum_given_twice_or_out_of_range(given: tuple[float | None, float | None]) -> None:
    with pytest.raises(UsageError):
        momentum_of(*given)


@pytest.mark.parametrize(
    ("norm", "momentum", "batch", "says"),
    [
        ("batch", 0.1, 64, []),
        ("batch", 0.99, 64, ["a decay of 0.99, as Keras counts, is momentum 0.01"]),
        ("batch", 0.9, 64, ["a decay of 0.9"]),
        ("batch", 0.1, 8, ["--norm group, or --reestimate"]),
        ("group", 0.99, 8, []),
    ],
)
def test_what_is_warned_of(norm: str, momentum: float, batch: int, says: list[str]) -> None:
    notes = list(Recipe(batch_size=batch).notes(norm, momentum))
    assert len(notes) == len(says) and all(part in text for part, text in zip(says, notes, strict=True))


def test_warnings_reach_the_caller(small: data.Dataset) -> None:
    with pytest.warns(UserWarning, match="batches of 4"):
        train("mlp", small, epochs=1, batch_size=4, quiet=True)


def test_reestimated_statistics_are_those_of_the_data_and_nothing_else_changes(small: data.Dataset) -> None:
    """The first BN's input depends on no other statistics, so its true mean and variance are known."""
    options: dict[str, Any] = {"epochs": 1, "kwargs": {"momentum": 0.01, "dropout": 0.5}, "quiet": True}
    plain, renewed = (train("mlp", small, reestimate=on, **options) for on in (False, True))
    linear, norm = renewed.module.body[1], renewed.module.body[2]
    with torch.no_grad():
        x = linear(torch.from_numpy(small.train.images).flatten(1))
    np.testing.assert_allclose(norm.running_mean, x.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var, x.var(0), rtol=1e-2, atol=1e-5)
    assert norm.momentum == 0.01 and not any(part.training for part in renewed.module.modules())
    assert (plain.module.body[2].running_var - x.var(0)).abs().max() > 0.5
    assert all(torch.equal(a, b) for a, b in zip(plain.module.parameters(), renewed.module.parameters(), strict=True))


def test_what_dropout_drops_is_no_part_of_the_statistics() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.BatchNorm1d(2))
    images = np.random.default_rng(0).normal(3, 1, (600, 2)).astype(np.float32)
    watch.reestimate(module, images)
    np.testing.assert_allclose(module[1].running_mean, images.mean(0), rtol=1e-3)
    np.testing.assert_allclose(module[1].running_var, images.var(0), rtol=2e-2)
    assert all(part.training for part in module.modules())
