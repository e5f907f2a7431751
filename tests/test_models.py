"""The architectures: what they compute, with every norm, and how they come through export, folding and verification."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import bnfold
from bnfold.errors import BnfoldError, InputError, UsageError
from bnfold.models import data, registry

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from bnfold.models.style import NORMS, Style  # noqa: E402
from bnfold.models.train import predict, train  # noqa: E402
from tests.architectures import ARCHITECTURES, BEHIND, batch_norms, example, seeded  # noqa: E402
from tests.graphs import at_runtime  # noqa: E402

BRANCHED = tuple(BEHIND)


@pytest.fixture(scope="module")
def small() -> data.Dataset:
    """A sixth of the digits: enough to move every statistic."""
    digits = data.load("digits")
    return replace(digits, train=data.Split(digits.train.images[::6], digits.train.labels[::6]))


# What they compute


def test_every_architecture_is_listed_with_its_batch_norms_and_its_output() -> None:
    assert list(ARCHITECTURES) == list(registry.ARCHITECTURES)
    for arch, expected in ARCHITECTURES.items():
        module = registry.build(arch)
        assert module.training and batch_norms(module) == expected.batchnorms, arch
        assert module(example(arch)).shape == (2, *expected.output), arch


CLASSIFIERS = [arch for arch, row in registry.ARCHITECTURES.items() if row.task == "classify"]


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_classifiers_map_images_of_any_size_to_logits(arch: str) -> None:
    module = registry.build(arch, input_shape=(3, 9, 7), classes=4)
    assert module(torch.zeros(2, 3, 9, 7)).shape == (2, 4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", registry.ARCHITECTURES)
def test_every_norm_stands_wherever_bn_does(arch: str, norm: str) -> None:
    """Before and after the activation: as many norms as BNs, and a gradient for every parameter."""
    for position in ("before", "after"):
        module = registry.build(arch, norm=norm, position=position)
        found = batch_norms(module) + sum(isinstance(part, torch.nn.GroupNorm) for part in module.modules())
        expected = BEHIND.get(arch) if position == "after" else None
        assert found == (0 if norm == "none" else expected or ARCHITECTURES[arch].batchnorms)
        assert batch_norms(module) == (found if norm == "batch" else 0)
        module(example(arch, batch=4)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_the_style_reaches_every_norm() -> None:
    for arch in registry.ARCHITECTURES:
        module = registry.build(arch, momentum=0.25, eps=0.125)
        parts = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
        assert {(part.momentum, part.eps) for part in parts} == {(0.25, 0.125)}, arch
        dropped = [part.p for part in registry.build(arch, dropout=0.5).modules() if isinstance(part, torch.nn.Dropout)]
        assert dropped == ([0.5]), arch


@pytest.mark.parametrize(
    ("norm", "axes"), [("batch", (0, 2, 3)), ("layer", (1, 2, 3)), ("group", (2, 3, 4)), ("instance", (2, 3))]
)
def test_a_norm_normalises_over_the_axes_of_its_definition(norm: str, axes: tuple[int, ...]) -> None:
    out = Style(norm).normalization(8)(3 * torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0)) + 2)
    parts = out.detach().reshape(4, 4, 2, 5, 5) if norm == "group" else out.detach()
    assert parts.mean(axes).abs().max() < 1e-5 and (parts.var(axes, correction=0) - 1).abs().max() < 1e-4


def test_the_norm_of_a_vector_leaves_something_of_it() -> None:
    for norm in NORMS:
        assert Style(norm).normalization(8, rank=0)(torch.randn(4, 8)).abs().max() > 0.1, norm


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_norm_stands_where_the_position_says(position: str) -> None:
    kinds = [type(part).__name__ for part in Style(position=position).conv(1, 2, 3, torch.nn.ReLU)]
    assert kinds == ["Conv2d", *(("BatchNorm2d", "ReLU") if position == "before" else ("ReLU", "BatchNorm2d"))]


def test_a_bias_is_there_where_no_norm_makes_up_for_it() -> None:
    for style, biased in ((Style(), False), (Style(position="after"), True), (Style("none"), True)):
        relu = torch.nn.ReLU
        layers = (style.conv(1, 2, 3, relu), style.linear(1, 2, relu), style.up(1, 2, 2, relu))
        assert [layer[0].bias is not None for layer in layers] == [biased] * 3


def test_gamma_and_beta_can_restore_the_identity() -> None:
    """γ = √(σ² + ε) and β = μ undo the normalisation (Ioffe & Szegedy 2015, §3), in PyTorch and in ONNX."""
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.BatchNorm2d(5).double().eval()
    with torch.no_grad():
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.1, 3, generator=generator)
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)
    x = torch.randn(2, 5, 3, 3, generator=generator, dtype=torch.float64)
    np.testing.assert_allclose(norm(x).detach(), x, rtol=1e-14, atol=1e-14)
    model = bnfold.export(norm.float(), inputs=x.float())
    np.testing.assert_allclose(
        at_runtime(ir.to_proto(model), {"input": x.float().numpy()})["output"], x, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("arch", "kwargs", "says"),
    [
        ("resnet", {"wdth": 3}, "'wdth'; it takes input_shape, classes, width, blocks, norm, position"),
        ("resnet", {"width": -3}, "width is -3; give a whole number from 1"),
        ("resnet", {"width": "a"}, "width is 'a'; give a whole number from 1"),
        ("resnet", {"width": True}, "width is True; give a whole number from 1"),
        ("resnet", {"width": 10**30}, "resnet: "),
        ("resnet", {"blocks": []}, "blocks is .*; give a list of whole numbers from 1"),
        ("resnet", {"blocks": 3}, "blocks is 3; give a list of whole numbers from 1"),
        ("crnn", {"cell": 3}, "cell is 3; give a text"),
        ("resnet", {"style": 3}, "no keyword 'style'"),
        ("resnet", {"input_shape": (64,)}, "only mlp takes other shapes"),
        ("densenet", {"input_shape": (1, 1, 8)}, "at least 2×2"),
        ("unet", {"input_shape": (1, 6, 8)}, "multiples of 4"),
        ("ssd", {"input_shape": (1, 12, 24)}, "multiples of 8"),
        ("crnn", {"input_shape": (1, 8, 16)}, "no room for 3"),
        ("crnn", {"cell": "rnn"}, "lstm, gru"),
        ("pointnet", {"input_shape": (3,)}, "coordinates, points"),
        ("dcgan", {"input_shape": (1, 8, 8)}, "latent"),
        ("mlp", {"input_shape": ()}, "whole numbers from 1"),
        ("mlp", {"normalize": {"mean": [0.0, 1.0], "std": [1.0, 1.0]}}, "needs 1 means"),
        ("mlp", {"normalize": {"mean": [0.0], "std": [0.0]}}, "above 0"),
        ("mlp", {"normalize": {"men": [0.0]}}, "men"),
    ],
)
def test_an_architecture_refuses_a_keyword_in_one_line(arch: str, kwargs: dict[str, object], says: str) -> None:
    refused(InputError, arch, kwargs, says)


@pytest.mark.parametrize(
    ("arch", "kwargs", "says"),
    [
        ("resnt", {}, "did you mean resnet"),
        ("qqq", {}, "known are mlp, lenet"),
        ("mlp", {"norm": "power"}, "norm is 'power'; give batch, layer"),
        ("mlp", {"position": "beside"}, "before, after"),
        ("mlp", {"momentum": 0.0}, "above 0, at most 1"),
        ("mlp", {"momentum": "x"}, "mlp: "),
        ("mlp", {"eps": -1.0}, "eps is -1.0"),
        ("mlp", {"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_an_unknown_name_or_style_is_refused_in_one_line(arch: str, kwargs: dict[str, object], says: str) -> None:
    refused(UsageError, arch, kwargs, says)


def refused(error: type[BnfoldError], arch: str, kwargs: dict[str, object], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        registry.build(arch, **kwargs)
    assert "\n" not in str(caught.value)


def test_listing_and_data_import_no_torch() -> None:
    code = (
        "import sys, bnfold.models.registry, bnfold.models.data, bnfold.models.recipe;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_architecture_is_documented() -> None:
    for row in registry.ARCHITECTURES.values():
        module = inspect.getmodule(row.load())
        assert "http" in (module.__doc__ or ""), f"{row.name} names its source"
        assert "`(N" in (row.load().__doc__ or ""), f"{row.name} gives its shapes"


# From training to a verified model


@pytest.mark.parametrize("arch", registry.ARCHITECTURES)
def test_every_architecture_trains_exports_folds_and_verifies(arch: str, small: data.Dataset) -> None:
    result = train(arch, small, epochs=2, quiet=True)
    assert result.history[1].loss < result.history[0].loss
    means = [part.running_mean for part in result.module.modules() if hasattr(part, "running_mean")]
    assert len(means) == ARCHITECTURES[arch].batchnorms and all(mean.abs().max() > 0 for mean in means)
    assert not any(part.training for part in result.module.modules())
    for exporter in ("dynamo", "torchscript"):
        model = bnfold.export(result.module, inputs=example(arch), exporter=exporter, note=lambda text: None)
        done = bnfold.optimize(model, simplify="never")
        assert done.verdict is not None and done.verdict.status == "pass", (exporter, done.verdict)
        assert done.report.folded == ARCHITECTURES[arch].folded, (exporter, done.report)
        assert done.report.folded + done.report.kept == ARCHITECTURES[arch].batchnorms


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("mlp", ["sink", "sink"]),
        # A gamma below 0, or a shift, can't pass the next block's activation or padding.
        ("repvgg", ["negative-scale", "negative-scale", "negative-scale", "sink"]),
    ],
)
def test_bn_behind_the_activation_sinks_into_the_next_layer(arch: str, expected: list[str]) -> None:
    module = seeded(registry.build(arch, position="after"))
    done = bnfold.optimize(bnfold.export(module, inputs=example(arch), exporter="torchscript"), simplify="never")
    found = [entry.reason.code if entry.reason else entry.judgement for entry in done.report.entries]
    assert found == expected and done.verdict is not None and done.verdict.status == "pass"


@pytest.mark.parametrize("arch", registry.ARCHITECTURES)
def test_normalisation_in_the_model_folds_into_its_first_layer(arch: str) -> None:
    """Nothing of it is left, padding or not: the same BNs fold as without it, and no other affine stays."""
    channels = registry.architecture(arch).input_shape()[0]
    moments = {"mean": [0.3 + 0.1 * c for c in range(channels)], "std": [0.5 + 0.1 * c for c in range(channels)]}
    module = seeded(registry.build(arch, normalize=moments))
    model = bnfold.export(module, inputs=example(arch), exporter="torchscript", note=lambda text: None)
    done = bnfold.optimize(model, verify=False)
    first = {node.op_type for use in done.model.graph.inputs[0].uses() for node in [use.node]}
    assert done.report.folded == ARCHITECTURES[arch].folded and done.report.affines >= 2
    assert not first & {"Sub", "Add", "Mul", "Div"}, first
    images = example(arch, batch=3, seed=1).numpy()
    expected = predict(module, images)
    np.testing.assert_allclose(
        at_runtime(ir.to_proto(done.model), {"input": images})["output"], expected,
        rtol=1e-3, atol=1e-4 * np.abs(expected).max(),
    )  # fmt: skip


def test_normalisation_in_the_model_is_normalisation() -> None:
    plain = registry.build("mlp").eval()
    module = registry.build("mlp", normalize={"mean": [0.25], "std": [2.0]}).eval()
    module.module.load_state_dict(plain.state_dict())
    x = example("mlp")
    np.testing.assert_array_equal(module(x).detach(), plain((x - 0.25) / 2).detach())


# Branches


@pytest.mark.parametrize(("norm", "position"), [("batch", "before"), ("batch", "after"), ("none", "before")])
@pytest.mark.parametrize("arch", BRANCHED)
def test_branches_merge_at_the_source(arch: str, norm: str, position: str) -> None:
    """Any running statistics and channel counts; the module itself stays as it is."""
    torch.manual_seed(0)
    module = registry.build(arch, input_shape=(3, 9, 7), classes=4, norm=norm, position=position).double()
    images = torch.randn(4, 3, 9, 7, dtype=torch.float64)
    module(3.0 * images + 1.0)  # statistics other than those of a fresh BN
    merged = module.reparameterized()
    assert module.training and not any(part.training for part in merged.modules())
    # What stands alone, a 7×7 with its BN, has no branches to merge; nor has a BN behind an activation.
    left = {"before": {"fastvit": 2}, "after": {"repvgg": 4, "mobileone": 7, "fastvit": 5}}[position]
    assert batch_norms(merged) == (left.get(arch, 0) if norm == "batch" else 0)
    module.eval()
    np.testing.assert_allclose(merged.double()(images).detach(), module(images).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", BRANCHED)
def test_branches_merge_as_well_from_the_file(arch: str) -> None:
    """Exported with its branches and optimized: as few nodes as the net merged at the source, the same function."""
    torch.manual_seed(0)
    module = registry.build(arch, blocks=(1,))
    module(3.0 * torch.randn(8, 1, 8, 8) + 1.0)
    module.eval()
    done, source = (
        bnfold.optimize(bnfold.export(net, inputs="1x1x8x8", exporter="torchscript"), simplify="never", verify=False)
        for net in (module, module.reparameterized())
    )
    assert done.report.kept == 0 and done.nodes_before > 1.5 * done.nodes_after
    assert done.nodes_after == source.nodes_after
    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    logits = at_runtime(ir.to_proto(done.model), {"input": images})["output"]
    np.testing.assert_allclose(logits, predict(module, images), rtol=1e-4, atol=1e-4)


def test_branches_of_another_norm_do_not_merge() -> None:
    with pytest.raises(ValueError, match="norm is batch"):
        registry.build("repvgg", norm="group").reparameterized()
