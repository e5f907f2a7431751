"""The page of a training: what it shows is what was logged, and it needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bnfold.models import data
from bnfold.report.charts import Axis, Series, chart
from bnfold.report.training import half_life, html
from tests.conftest import Outcome

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("jinja2")

from bnfold.models import log, registry  # noqa: E402
from bnfold.models.story import distributions, story  # noqa: E402
from bnfold.models.train import train  # noqa: E402
from bnfold.models.watch import batch_statistics  # noqa: E402

Bnfold = Callable[..., Outcome]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same net with BN, and without it."""
    folder = tmp_path_factory.mktemp("runs")
    digits = data.load("digits")
    small = replace(digits, train=data.Split(digits.train.images[::6], digits.train.labels[::6]))
    for norm in ("batch", "none"):
        train("lenet", small, epochs=3, kwargs={"norm": norm}, log=folder / norm, quiet=True)
    return folder


def test_the_page_shows_both_trainings_and_needs_nothing_but_itself(bnfold: Bnfold, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.html"
    for quiet, says in ((["-q"], ""), ([], f"batch, none → {out}\n")):
        done = bnfold("report", "train", runs / "batch", runs / "none", "-o", out, *quiet)
        assert (done.code, done.out, done.err) == (0, says, "")
    page = out.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<img|src=|@import|url\(", page)
    charts = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
    # Loss and score; gap and ratio; mean and variance of the first and last BN; before and after each of 4; 4 without.
    assert len(charts) == 2 + 2 + 4 + 8 + 4
    for text in charts:
        ElementTree.fromstring(text)
        assert "nan" not in text and "inf" not in text
    assert len(re.findall("<polyline", charts[0])) == 2
    assert "BN’s statistics over the steps: batch" in page and "BN’s statistics over the steps: none" not in page
    assert all(layer in page for layer in ("features.0.1", "features.2.1", "body.0.1", "body.1.1"))


def test_a_checkpoint_alone_shows_its_activations(bnfold: Bnfold, runs: Path, tmp_path: Path) -> None:
    done = bnfold("report", "train", runs / "batch" / log.MODEL, "-o", tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert done.code == 0 and page.count('class="chart"') == 8 and "Learning" not in page


def test_an_unfinished_training_is_shown_so_far(runs: Path, tmp_path: Path) -> None:
    for name in (log.METRICS, log.STATISTICS, log.STATE):
        (tmp_path / name).write_bytes((runs / "batch" / name).read_bytes())
    told = story([tmp_path])
    assert told["runs"][0]["activations"] == [] and "not finished" in html(told) and "score so far" in html(told)


def test_the_story_is_what_was_logged(runs: Path) -> None:
    (told,) = story([runs / "batch"])["runs"]
    assert [epoch["loss"] for epoch in told["epochs"]] == [epoch.loss for epoch in log.read_metrics(runs / "batch")]
    records = [record for record in log.read_records(runs / "batch") if record.layer == "body.0.1"]
    (layer,) = [one for one in told["statistics"] if one["layer"] == "body.0.1"]
    assert layer["gap"] == [record.gap for record in records] and layer["step"] == [record.step for record in records]


def test_distributions_are_those_around_the_norm() -> None:
    torch.manual_seed(0)
    module = registry.build("mlp").eval()
    images = np.random.default_rng(0).random((64, 1, 8, 8), np.float32)
    first = distributions(module, images)[0]
    linear, norm = module.body[1], module.body[2]
    with torch.no_grad():
        before = linear(torch.from_numpy(images).flatten(1))
        after = norm(before)
    for name, values in (("before", before), ("after", after)):
        np.testing.assert_allclose(first[name]["means"], values.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(first[name]["deviations"], values.std(0, correction=0), rtol=1e-4)
        width = first[name]["centres"][1] - first[name]["centres"][0]
        assert sum(first[name]["density"]) * width == pytest.approx(1, rel=1e-4)  # histograms of float32
    assert module.training is False and not module.body[2]._forward_hooks


def test_batch_statistics_are_what_bn_tracks() -> None:
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    norm = torch.nn.BatchNorm2d(3, momentum=1.0)
    norm(x)
    mean, var = batch_statistics(x)
    np.testing.assert_allclose(mean, norm.running_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, norm.running_var, rtol=1e-4)


def test_half_of_an_average_is_new_after_its_half_life() -> None:
    for momentum in (0.01, 0.1, 0.5):
        assert (1 - momentum) ** half_life(momentum) == pytest.approx(0.5)
    assert half_life(1.0) == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("none",), 4, "no such file"),
        (("empty",), 4, "no such file; give the folder that `bnfold train --log` wrote"),
        (("damaged.safetensors",), 4, "damaged, or no safetensors file"),
        (("batch.safetensors", "--data", "wide.npz"), 4, "but the model takes"),
        ((), 2, "Missing argument"),
    ],
)
def test_refused(
    words: tuple[str, ...], code: int, says: str, bnfold: Bnfold, runs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.safetensors").write_bytes(b"x")
    (tmp_path / "batch.safetensors").write_bytes((runs / "batch" / log.MODEL).read_bytes())
    np.savez("wide.npz", x=np.zeros((20, 9, 9), np.uint8), y=np.arange(20) % 2)
    done = bnfold("report", "train", *words, "-o", "t.html")
    assert done.code == code and says in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "t.html").exists()


# Charts


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 4, False, [-2, 0, 2, 4]),
        (0.93, 0.99, False, [0.94, 0.96, 0.98]),
        (1, 1000, True, [1, 10, 100, 1000]),
        (0.03, 0.3, True, [0.05, 0.1, 0.2]),
        (0.6, 1.8, True, [1, 1.5]),
    ],
)
def test_ticks_are_round_and_on_the_axis(low: float, high: float, log: bool, ticks: list[float]) -> None:
    found = Axis(low, high, log).ticks()
    assert [value for value, _ in found] == pytest.approx(ticks)
    assert [float(text) for _, text in found] == pytest.approx(ticks)


def test_epochs_are_whole_numbers() -> None:
    ticks = {(1, 2): [1, 2], (1, 4): [1, 2, 3, 4], (1, 20): [5, 10, 15, 20]}
    for (low, high), expected in ticks.items():
        assert [value for value, _ in Axis(low, high, whole=True).ticks()] == expected


def test_a_chart_stays_in_its_frame_whatever_it_is_given() -> None:
    odd = [float("nan"), float("inf"), 0.0, -1.0, 3.0, 3.0]
    for kind in ("line", "dots", "area"):
        for flags in ({}, {"log_x": True}, {"log_y": True}):
            text = chart([Series(odd, odd, 1, kind)], x_label="<x>", y_label="y", label='"a"', **flags)
            ElementTree.fromstring(text)
            numbers = [float(n) for n in re.findall(r'(?:cx|cy|x1|x2|y1|y2|x|y)="(-?[\d.]+)"', text)]
            assert numbers and min(numbers) >= 0 and max(numbers) <= 440
    ElementTree.fromstring(chart([Series([], [], 0, "area")], x_label="", y_label="", label=""))
