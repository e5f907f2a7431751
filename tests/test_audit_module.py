"""The audit of PyTorch modules: each code has a module that shows it, and a sound twin that does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnfold.audit import audit
from bnfold.audit.findings import Code
from bnfold.errors import InputError, UsageError

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from bnfold.audit.module import inspect_module  # noqa: E402

DATA = {"input": np.random.default_rng(0).normal(size=(200, 2, 5, 5)).astype(np.float32)}


def net() -> nn.Sequential:
    """A module in eval mode after two batches, with nothing to find."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    with torch.no_grad():
        for _ in range(2):
            module(torch.randn(64, 2, 5, 5))
    return module.eval()


def set_to(part: str, value: object) -> Callable[[nn.Sequential], None]:
    def change(module: nn.Sequential) -> None:
        held = getattr(module[1], part)
        if isinstance(held, Tensor):
            held.data.copy_(torch.as_tensor(value))
        else:
            setattr(module[1], part, value)

    return change


def frozen_in_training(module: nn.Sequential) -> None:
    module[1].requires_grad_(False)
    module[1].train()


def fresh(module: nn.Sequential) -> None:
    module[1] = nn.BatchNorm2d(4).eval()


def without(module: nn.Sequential) -> None:
    module[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()


def loaded_without_a_count(module: nn.Sequential) -> None:
    fresh(module)
    set_to("num_batches_tracked", 7)(module)


CASES: list[tuple[Callable[[nn.Sequential], None], list[tuple[Code, str]]]] = [
    (lambda module: None, []),
    (lambda module: module.requires_grad_(False), []),
    (lambda module: module.train(), [(Code.TRAINING_MODE, "Sequential")]),
    (lambda module: module[1].train(), [(Code.TRAINING_MODE, "1")]),
    (frozen_in_training, [(Code.TRAINING_MODE, "1"), (Code.FROZEN_BUT_TRAINING, "1")]),
    (without, [(Code.NO_STATISTICS, "1")]),
    (fresh, [(Code.NEVER_UPDATED, "1")]),
    (loaded_without_a_count, [(Code.INITIAL_STATISTICS, "1")]),
    (set_to("num_batches_tracked", 0), []),  # converted from elsewhere: the statistics are there
    (set_to("momentum", 0.9), [(Code.MOMENTUM, "1")]),
    (set_to("momentum", 0.99), [(Code.MOMENTUM, "1")]),
    (set_to("momentum", None), [(Code.MOMENTUM, "1")]),
    (set_to("momentum", 0.0), [(Code.MOMENTUM, "1")]),
    (set_to("momentum", 0.01), []),
    (set_to("running_var", [1.0, -1, 1, 1]), [(Code.NEGATIVE_VARIANCE, "1")]),
    (set_to("running_var", [1.0, 1e-7, 1, 1]), [(Code.VANISHING_VARIANCE, "1")]),
    (set_to("running_mean", [1.0, float("nan"), 1, 1]), [(Code.NOT_FINITE, "1")]),
    (set_to("weight", [1.0, 0, 1, 1]), [(Code.DEAD_GAMMA, "1")]),
]


@pytest.mark.parametrize(("change", "expected"), CASES)
def test_a_module_is_inspected(
    change: Callable[[nn.Sequential], None], expected: list[tuple[Code, str]]
) -> None:
    module = net()
    change(module)
    found = inspect_module(module)
    assert [(finding.code, finding.module) for finding in found] == expected
    report = audit(module)
    assert list(report.findings) == found and report.exit_code == (1 if expected else 0) and report.batch_norms == 2


def test_a_momentum_says_what_it_does() -> None:
    module = net()
    module[1].momentum = 0.99
    (found,) = inspect_module(module)
    assert found.detail == "momentum=0.99: the last batch makes up 99% of the statistics"
    assert "give 0.1 where Keras has 0.9" in found.remedy


def fitted(module: nn.Module) -> nn.Module:
    """The module with the statistics of DATA."""
    return audit(module, DATA, recalibrate=True, allow=[code.value for code in Code]).write.__self__.module  # type: ignore[union-attr]


def codes(module: nn.Module) -> list[tuple[str, str]]:
    return [(finding.code.value, finding.module) for finding in audit(module, DATA).findings]


def test_a_relu_that_never_fires() -> None:
    module = fitted(net())
    assert codes(module) == []
    with torch.no_grad():
        module[1].bias[2] = -50.0
    assert ("dead-relu", "1") in codes(module)
    # Behind the second one there is no ReLU, and a leaky one never dies.
    with torch.no_grad():
        module[4].bias[2] = -50.0
    assert ("dead-relu", "4") not in codes(module)
    module[2] = nn.LeakyReLU()
    assert ("dead-relu", "1") not in codes(module)


class Twice(nn.Module):
    """One BatchNorm at two call sites."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.bn(x)))


def test_one_batch_norm_at_two_call_sites() -> None:
    with torch.no_grad():
        module = Twice()
        module(torch.randn(64, 2, 5, 5))
    assert ("shared", "bn") in codes(module.eval())


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Module()
        self.head.register_buffer("mean", torch.full((2,), 3.0))
        self.head.register_buffer("var", torch.ones(2))
        self.unused = nn.BatchNorm2d(2).eval()
        self.unused.running_mean += 1

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.head.mean, self.head.var, eps=1e-3)


def test_functional_calls_are_seen_and_what_is_not_reached_is_listed() -> None:
    report = audit(Functional().eval(), DATA)
    assert report.drift is not None
    (layer,) = report.drift.layers
    assert layer.name == "head" and layer.median_shift == pytest.approx(3.0, abs=0.1) and layer.large
    assert [site.name for site in report.drift.unobserved] == ["unused"]


@pytest.mark.parametrize("cls", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_every_kind_of_batch_norm_is_seen(cls: type[nn.Module]) -> None:
    report = audit(nn.Sequential(cls(3)).eval(), {"input": np.ones((70, 3), np.float32)})
    assert report.drift is not None and [layer.name for layer in report.drift.layers] == ["0"]
    assert [finding.code for finding in report.findings] == [Code.NEVER_UPDATED, Code.DRIFTED]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.BatchNorm2d(2)).eval().to(dtype)
    kind = np.float64 if dtype == torch.float64 else np.float16
    if dtype == torch.bfloat16:
        with pytest.raises(InputError, match="the module fails on input"):
            audit(nn.Sequential(nn.Conv2d(2, 2, 1)).to(dtype).eval(), {"input": DATA["input"]})
        return
    report = audit(module, {"input": DATA["input"].astype(kind)}, recalibrate=True)
    assert len(report.recalibrated) == 1


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = net()
    module[1].train()
    before = copy.deepcopy(module.state_dict())
    report = audit(module, DATA, recalibrate=True)
    assert module[1].training and not module[0].training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    report.save(tmp_path / "w.safetensors")
    from safetensors.torch import load_file

    state = load_file(tmp_path / "w.safetensors")
    assert state.keys() == before.keys() and not torch.equal(state["1.running_mean"], before["1.running_mean"])
    with pytest.raises(UsageError, match=r"written as \.safetensors"):
        report.save(tmp_path / "w.pt")


def test_a_recalibrated_checkpoint_is_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from bnfold.models.checkpoint import load_checkpoint
    from bnfold.models.data import load
    from bnfold.models.train import train

    data = load("digits")
    path, new = tmp_path / "c.safetensors", tmp_path / "new.safetensors"
    train("mlp", data, epochs=2, quiet=True).save(path)
    given = {"x": (data.test.images * 0.3).astype(np.float32), "labels": data.test.labels}
    report = audit(path, given, recalibrate=True)
    report.save(new)
    assert report.accuracy[1] is not None and report.accuracy[0] is not None
    assert report.accuracy[1] > report.accuracy[0] and report.exit_code == 1
    assert load_checkpoint(new).meta.arch == "mlp"
    again = audit(new, given)
    assert again.drift is not None and again.drift.score < 1e-5 and again.accuracy[0] == report.accuracy[1]


def test_a_module_that_fails_on_the_data() -> None:
    with pytest.raises(InputError, match=r"the module fails on input \(16, 3, 5, 5\) float32: "):
        audit(net(), {"input": np.ones((200, 3, 5, 5), np.float32)})
    with pytest.raises(InputError, match="no array named 'input'"):
        audit(net(), {"pixels": np.ones((200, 2, 5, 5), np.float32)})
