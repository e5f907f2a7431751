"""The statistics of the drift test: moments and their errors, what is flagged, and what chance can explain."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.audit import drift
from bnfold.audit.moments import Moments
from bnfold.folding.frozen import Frozen


@pytest.mark.parametrize("cuts", [(7,), (1, 2, 4), (3, 3, 1)])
def test_moments_are_those_of_the_whole(cuts: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (7, 5, 4, 3)).astype(np.float32)
    seen = Moments(np.full(5, 2.5))
    for part in np.split(x, np.cumsum(cuts)[:-1]):
        seen.add(part, len(part))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(seen.mean, wide.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(seen.var, wide.var((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(seen.highest, wide.max((0, 2, 3)))
    per_example = wide.mean((2, 3))
    np.testing.assert_allclose(seen.mean_error, per_example.std(0, ddof=1) / np.sqrt(7), rtol=1e-12)
    scaled = seen.scaled(np.full(5, -2.0), np.zeros(5))
    np.testing.assert_allclose(scaled.mean, -2 * (seen.mean - 2.5), rtol=1e-12)
    np.testing.assert_allclose(scaled.var, 4 * seen.var, rtol=1e-12)
    np.testing.assert_allclose(scaled.highest, -2 * (seen.lowest - 2.5), rtol=1e-12)


def test_the_example_is_the_unit_of_the_sample() -> None:
    """64 equal pixels are one observation: the errors are those of the examples, whatever the rows are called."""
    values = np.random.default_rng(0).normal(size=(50, 3))
    flat, spread, rows = Moments(np.zeros(3)), Moments(np.zeros(3)), Moments(np.zeros(3))
    flat.add(values[:, :, None], 50)
    spread.add(np.repeat(values[:, :, None], 64, 2), 50)
    rows.add(np.repeat(values, 4, 0), 50)
    for other in (spread, rows):
        np.testing.assert_allclose(flat.mean_error, other.mean_error)
        np.testing.assert_allclose(flat.var_error, other.var_error)


def test_standard_errors_are_the_spread_over_samples() -> None:
    random = np.random.default_rng(0)
    means, variances, errors = [], [], []
    for _ in range(400):
        x = random.gamma(2.0, size=(100, 2, 1)) + random.normal(size=(100, 2, 6))
        seen = Moments(np.zeros(2))
        seen.add(x, 100)
        means.append(seen.mean)
        variances.append(seen.var)
        errors.append((seen.mean_error, seen.var_error))
    mean_error, var_error = np.mean(errors, 0)
    np.testing.assert_allclose(np.std(means, 0), mean_error, rtol=0.12)
    np.testing.assert_allclose(np.std(variances, 0), var_error, rtol=0.15)


def one(name: str = "bn", channels: int = 3) -> Frozen:
    zeros, ones = np.zeros(channels), np.ones(channels)
    return Frozen(name, "x", "y", ones, zeros, zeros, ones, 0.0)


def compared(x: np.ndarray, frozen: Frozen) -> drift.LayerDrift:
    seen = Moments(frozen.mean)
    seen.add(x, len(x))
    (layer,) = drift.compare([(frozen, seen, np.ones(frozen.channels, bool))])
    return layer


def test_false_alarms_are_as_rare_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the demand that an effect be large, chance alone flags a channel in about 1 % of samples."""
    monkeypatch.setattr(drift, "SHIFT", 0.0)
    monkeypatch.setattr(drift, "RATIO", 1.0)
    random, frozen = np.random.default_rng(0), one(channels=50)
    alarms = sum(compared(random.normal(size=(100, 50, 1)), frozen).flagged.any() for _ in range(300))
    assert alarms <= 12


@pytest.mark.parametrize(("mean", "scale", "examples", "flagged"), [
    (0.0, 1.0, 400, False),
    (0.2, 1.0, 4000, False),   # certain, but small
    (0.4, 1.0, 400, True),
    (0.4, 1.0, 70, False),     # large, but it may be chance
    (-0.4, 1.0, 400, True),
    (0.0, 1.3, 4000, False),
    (0.0, 2.0, 400, True),
    (0.0, 0.5, 400, True),
    (5.0, 1.0, 63, False),     # single channels are not judged by so few
    (5.0, 1.0, 64, True),
])  # fmt: skip
def test_a_channel_is_flagged_if_it_is_large_and_certain(
    mean: float, scale: float, examples: int, flagged: bool
) -> None:
    x = np.random.default_rng(1).normal(size=(examples, 3, 1))
    x[:, 1] = mean + scale * x[:, 1]
    layer = compared(x, one())
    assert layer.flagged.tolist() == [False, flagged, False] and not layer.large


def test_a_layer_is_flagged_by_its_median() -> None:
    x = np.random.default_rng(1).normal(size=(400, 3, 1))
    x[:, :2] += 0.5
    assert compared(x, one()).large
    assert compared(x[:20] + 2.0, one()).large and not compared(x[:20] + 0.3, one()).large
    assert not compared(x[:7] + 9.0, one()).large  # so few are no sample


def test_epsilon_is_part_of_the_scale() -> None:
    """A vanishing variance is no reason to call a tiny shift large: the layer divides by √(var + epsilon)."""
    frozen = Frozen("bn", "x", "y", np.ones(1), np.zeros(1), np.zeros(1), np.zeros(1), 1e-2)
    layer = compared(np.full((100, 1, 1), 1e-3), frozen)
    assert layer.median_shift == pytest.approx(1e-2) and not layer.flagged.any()


def test_no_number_is_no_alarm() -> None:
    frozen = Frozen("bn", "x", "y", np.ones(2), np.zeros(2), np.array([np.nan, 0.0]), np.array([1.0, -1.0]), 0.0)
    layer = compared(np.ones((100, 2, 1)), frozen)
    assert not layer.flagged.any() and not layer.large and layer.distance == 0.0
    assert layer.to_dict()["worst"] == {"channel": 0, "shift": None, "ratio": None}
