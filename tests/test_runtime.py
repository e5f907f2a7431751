"""Sessions: any source of a model, the level that was asked for, and never another provider in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from bnfold import runtime
from bnfold.errors import ModelError, ProviderError
from bnfold.io import load, save
from bnfold.providers import PROVIDERS
from bnfold.verify.levels import chosen
from bnfold.verify.options import Options
from tests import nets

X = {"x": np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)}


def test_a_model_runs_from_any_source(tmp_path: Path) -> None:
    proto = nets.plain(0)
    save(load(proto), tmp_path / "inline.onnx", external=False)
    save(load(proto), tmp_path / "external.onnx", external=True)
    sources: list[Any] = [
        proto, load(proto), tmp_path / "inline.onnx", str(tmp_path / "external.onnx"), load(tmp_path / "external.onnx"),
    ]  # fmt: skip
    outputs = [runtime.run(runtime.session(s, optimize=False, threads=1), X)["y"] for s in sources]
    assert all(np.array_equal(outputs[0], y) for y in outputs)


def test_tensors_in_several_folders_go_through_a_file(tmp_path: Path) -> None:
    models = []
    for name, net in (("a", nets.plain(0)), ("b", nets.plain(0))):
        (tmp_path / name).mkdir()
        save(load(net), tmp_path / name / "m.onnx", external=True)
        models.append(load(tmp_path / name / "m.onnx"))
    mixed = models[0]
    for name, value in mixed.graph.initializers.items():
        if name != "w0" and isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = models[1].graph.initializers[name].const_value
    expected = runtime.run(runtime.session(nets.plain(0), optimize=False), X)["y"]
    np.testing.assert_array_equal(runtime.run(runtime.session(mixed, optimize=False), X)["y"], expected)


def test_levels_are_what_they_say() -> None:
    plain, best = (runtime.session(nets.plain(0), optimize=o) for o in (False, True))
    assert not runtime.is_optimized(plain) and runtime.is_optimized(best)
    assert runtime.placement(plain) == {"CPUExecutionProvider": len(nets.plain(0).graph.node)}
    assert runtime.unproven(plain, "cpu") is None
    assert "no node" in str(runtime.unproven(plain, "cuda"))


def test_cpu_is_there_and_usable() -> None:
    assert "cpu" in runtime.available_providers()
    assert runtime.usable("cpu") is None


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "dml", "coreml", "NoSuchExecutionProvider"])
def test_a_missing_provider_is_refused_loudly(provider: str) -> None:
    reason = runtime.usable(provider)
    if reason is None:
        pytest.skip(f"{provider} works here")
    assert provider in reason and "\n" not in reason
    for strict in (False, True):
        with pytest.raises(ProviderError):
            runtime.session(nets.plain(0), provider, optimize=False, strict=strict)


@pytest.mark.parametrize("name", ["cuda", "CUDA", "CUDAExecutionProvider", "cudaexecutionprovider"])
def test_a_provider_is_the_same_by_each_of_its_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called: full precision in the gate, and a cell at TF32's where that is what will be deployed."""
    asked: list[Any] = []

    def opened(*args: Any, providers: list[Any], **options: Any) -> None:
        asked.extend(providers)
        raise RuntimeError("no CUDA-capable device")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(runtime, "_require", lambda provider, name: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with pytest.raises(ProviderError):
        runtime.session(nets.plain(0), name, optimize=False)
    assert asked[0] == ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    assert [level.name for level in chosen(None, name)] == ["off", "deployed", "tf32"]
    assert Options(providers=(name, "cpu", "CPUExecutionProvider")).providers == ("cuda", "cpu")


def test_a_provider_that_cannot_leave_tf32_out_is_held_to_it() -> None:
    for name in ("tensorrt", "TensorrtExecutionProvider"):
        assert [(level.name, level.unit) for level in chosen(None, name)] == [("off", 2.0**-11), ("deployed", 2.0**-11)]
    assert [level.unit for level in chosen(None, "cpu")] == [None, None]


def test_a_provider_that_falls_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that lists CUDA but gives a CPU session, as happens where its libraries are missing."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [p.full for p in PROVIDERS.values()])
    monkeypatch.setattr(runtime, "_require", lambda provider, name: None)
    honest = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, **k: honest(*a, **{**k, "providers": ["CPUExecutionProvider"]})
    )
    with pytest.raises(ProviderError, match="fell back to CPUExecutionProvider"):
        runtime.session(nets.plain(0), "cuda", optimize=False)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_cuda_is_looked_for_where_pip_puts_it(
    provider: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    looked: list[str] = []

    def preload() -> None:
        print("Failed to load libcublas")
        looked.append(provider)

    full = PROVIDERS[provider].full
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [full, "CPUExecutionProvider"])
    runtime._require.cache_clear()
    assert (runtime.usable(provider) is None, looked) == (runtime.usable("cpu") is not None, [provider])
    assert capfd.readouterr() == ("", "")


def test_what_onnx_runtime_refuses_is_one_line() -> None:
    text = '<ir_version: 8, opset_import: ["": 17, "my": 1]> g (float[2] x) => (float[2] y) { y = my.Op (x) }'
    with pytest.raises(ModelError) as caught:
        runtime.session(parser.parse_model(text), optimize=False)
    assert "my" in str(caught.value) and "\n" not in str(caught.value)
    session = runtime.session(nets.plain(0), optimize=False)
    for feeds in ({"x": np.zeros((1, 3, 12, 13), np.float32)}, {"z": X["x"]}, {}):
        with pytest.raises(runtime.RunError) as failed:
            runtime.run(session, feeds)
        assert "\n" not in str(failed.value)


def test_outputs_keep_names_and_types() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float16[2,3] x) => (float16[2,3] y, int64[2] k) {
        y = Mul (x, w) k = ArgMax <axis=1, keepdims=0> (y) }"""
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float16), "w"))
    found = runtime.run(runtime.session(model, optimize=False), {"x": np.ones((2, 3), np.float16)})
    assert list(found) == ["y", "k"] and found["y"].dtype == np.float16 and found["k"].dtype == np.int64


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    session = runtime.session(nets.plain(0), optimize=True)
    with pytest.raises(runtime.RunError):
        runtime.run(session, {})
    for provider in ("cuda", "tensorrt"):
        runtime.usable(provider)
    assert capfd.readouterr() == ("", "")
