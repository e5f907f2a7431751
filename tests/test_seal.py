"""The certificate: it survives moving, and nothing that matters can change under it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnfold
from bnfold import io, seal
from bnfold.errors import ModelError
from tests.conftest import conv_bn


@pytest.mark.parametrize("external", [False, True])
def test_a_verified_model_is_certified_wherever_it_goes(tmp_path: Path, external: bool) -> None:
    source = conv_bn(channels=16)
    done = bnfold.optimize(source, verify_options={"samples": 2})
    io.save(done.model, tmp_path / "folded.onnx", external=external)
    (tmp_path / "moved").mkdir()
    for file in tmp_path.glob("folded.onnx*"):
        file.rename(tmp_path / "moved" / file.name)
    found = seal.certificate(io.load(tmp_path / "moved" / "folded.onnx"), "it")
    assert found is not None
    assert (found["source"], found["providers"]) == (io.digest(io.load(source)), ["cpu"])


def test_no_certificate_without_a_pass() -> None:
    done = bnfold.optimize(conv_bn(), verify=False)
    assert seal.certificate(done.model, "it") is None


def _weight(model: ir.Model) -> None:
    value = max(model.graph.initializers.values(), key=lambda v: v.const_value.nbytes)
    changed = value.const_value.numpy().copy()
    changed.flat[0] = np.nextafter(changed.flat[0], np.inf)
    value.const_value = ir.tensor(changed, name=value.name)


def _attribute(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "Conv")
    node.attributes["strides"] = ir.AttrInt64s("strides", [2, 2])


def _bias(model: ir.Model) -> None:
    value = min(model.graph.initializers.values(), key=lambda v: v.const_value.nbytes)
    value.const_value = ir.tensor(-value.const_value.numpy(), name=value.name)


def _edge(model: ir.Model) -> None:
    relu = [node for node in model.graph if node.op_type == "Relu"][-1]
    relu.outputs[0].replace_all_uses_with(relu.inputs[0], replace_graph_outputs=True)


@pytest.mark.parametrize("change", [_weight, _bias, _attribute, _edge])
def test_a_change_shows(change: Callable[[ir.Model], None]) -> None:
    model = bnfold.optimize(conv_bn(channels=16), verify_options={"samples": 2}).model
    change(model)
    with pytest.raises(ModelError, match="it: was changed after it was verified"):
        seal.certificate(model, "it")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read"),
        ("[" * 10**5, "can't be read"),
        ("[]", "can't be read"),
        ('{"version": 1, "sha256": ""}', "can't be read"),
        ('{"version": 1, "bnfold": "0", "sha256": "", "source": "", "providers": 3}', "can't be read"),
        ('{"version": 1, "bnfold": "0", "sha256": "", "source": "", "providers": []}', "was changed"),
        ('{"version": 9, "sha256": ""}', "version 9"),
    ],
)
def test_a_certificate_that_is_none(text: str, message: str) -> None:
    model = io.load(conv_bn())
    model.metadata_props[seal.CERTIFICATE] = text
    with pytest.raises(ModelError, match=message):
        seal.certificate(model, "it")


def test_a_server_refuses_what_was_changed_after_verification(tmp_path: Path) -> None:
    serving = pytest.importorskip("bnfold.serve.model")
    from bnfold.serve.settings import Settings

    path = tmp_path / "folded.onnx"
    done = bnfold.optimize(conv_bn(channels=16), verify_options={"samples": 2})
    done.save(path)
    loaded = serving.open_model("m", "1", path, Settings(path))
    assert loaded.properties["certificate"]["sha256"] == seal.fingerprint(done.model)
    model = io.load(path)
    _weight(model)
    io.save(model, path)
    with pytest.raises(ModelError, match=r"folded\.onnx: was changed after it was verified"):
        serving.open_model("m", "1", path, Settings(path))
