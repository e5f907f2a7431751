"""Every architecture, exported by both of torch's exporters: how much of it folds, and that it computes the same."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("lightning")

from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold.models import registry  # noqa: E402
from bnfold.rewrite import rewrite  # noqa: E402
from tests.graphs import exact, folded, operators  # noqa: E402

# BatchNormalizations that fold or merge, and those that nothing can absorb: a ReLU behind them on a value with several
# readers. Both exporters write them alike.
EXPECTED = {
    "mlp": (2, 0), "lenet": (4, 0), "resnet": (9, 0), "preact": (6, 1), "mobilenet": (14, 0), "mobilenetv3": (14, 0),
    "densenet": (6, 8), "inception": (15, 0), "repvgg": (9, 0), "mobileone": (19, 0), "fastvit": (15, 0),
    "levit": (11, 0), "unet": (12, 0), "autoencoder": (4, 0), "dcgan": (2, 0), "pointnet": (4, 0), "crnn": (4, 0),
    "ssd": (5, 0),
}  # fmt: skip


def trained(module: nn.Module) -> nn.Module:
    """The module in eval mode, its statistics, gammas and betas those of no fresh BN."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(part.weight, -1.5, 1.5, generator=generator)
            nn.init.normal_(part.bias, generator=generator)
    return module.eval()


def test_every_architecture_is_expected_to_fold() -> None:
    assert EXPECTED.keys() == registry.ARCHITECTURES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("arch", EXPECTED)
def test_exported(arch: str, exporter: str) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, *registry.architecture(arch).input_shape())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = bnfold.export(trained(registry.build(arch)), inputs=[example], exporter=exporter)
    before = ir.to_proto(model)
    report = rewrite(model)
    after = ir.to_proto(model)
    absorbed, kept = EXPECTED[arch]
    assert (report.folded, report.kept) == (absorbed, kept)
    assert Counter(operators(before))["BatchNormalization"] == absorbed + kept
    assert Counter(operators(after))["BatchNormalization"] == kept
    assert {entry.reason.code for entry in report.entries if entry.reason} == ({"other-readers"} if kept else set())
    assert len(operators(after)) <= len(operators(before))
    onnx.checker.check_model(after, full_check=True)
    assert (list(after.graph.input), list(after.graph.output)) == (list(before.graph.input), list(before.graph.output))
    feed = {before.graph.input[0].name: example.numpy()}
    ours, theirs = exact(after, feed), exact(before, feed)
    for name, array in theirs.items():
        # In float64 only the one rounding of each constant to float32 is left.
        assert np.abs(ours[name] - array).max() <= 1e-5 * np.abs(array).max(), name
    assert folded(after)[0].SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
