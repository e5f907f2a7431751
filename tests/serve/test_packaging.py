"""What a fleet is given: Triton's own schema reads it, `bnfold serve` serves it, nothing half-written stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format

from bnfold import io
from bnfold.errors import ModelError, OutputError, UsageError
from bnfold.serve import packaging
from bnfold.serve.repository import repository
from tests.conftest import Outcome
from tests.serve import zoo

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def parsed(root: Path, name: str) -> Any:
    return text_format.Parse((root / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    path = tmp_path / "cnn.onnx"
    onnx.save(zoo.MODELS["cnn"](), path)
    return path


@pytest.mark.parametrize("max_batch", [0, 16])
@pytest.mark.parametrize("gpu", [False, True])
def test_triton_reads_the_configuration(tmp_path: Path, cnn: Path, max_batch: int, gpu: bool) -> None:
    done = packaging.triton(str(cnn), tmp_path / "r", "digits", max_batch=max_batch, gpu=gpu, instances=2)
    assert (done.name, done.version) == ("digits", 1)
    config = parsed(tmp_path / "r", "digits")
    assert (config.name, config.platform, config.max_batch_size) == ("digits", "onnxruntime_onnx", max_batch)
    assert [(p.name, p.data_type, list(p.dims)) for p in (*config.input, *config.output)] == [
        ("x", model_config_pb2.TYPE_FP32, [3, 8, 8] if max_batch else [-1, 3, 8, 8]),
        ("y", model_config_pb2.TYPE_FP32, [8, 8, 8] if max_batch else [-1, 8, 8, 8]),
    ]
    (group,) = config.instance_group
    kind = group.KIND_GPU if gpu else group.KIND_CPU
    assert (group.kind, group.count) == (kind, 2) and config.HasField("dynamic_batching") == bool(max_batch)
    assert config.parameters["bnfold.sha256"].string_value == io.digest(cnn) == done.digest
    assert io.digest(tmp_path / "r" / "digits" / "1" / "model.onnx") == done.digest


@pytest.mark.parametrize("datatype", zoo.DTYPES)
def test_every_type_has_its_name(tmp_path: Path, datatype: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(zoo.identity(datatype), path)
    packaging.triton(str(path), tmp_path / "r", "m")
    name = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    assert parsed(tmp_path / "r", "m").input[0].data_type == getattr(model_config_pb2, name)


def test_odd_names_are_quoted(tmp_path: Path) -> None:
    model = zoo.times(2.0)
    odd = 'a"b\\c\n\u00e9'
    model.graph.input[0].name = odd
    model.graph.node[-1].input[0] = odd
    onnx.save(model, tmp_path / "m.onnx")
    packaging.triton(str(tmp_path / "m.onnx"), tmp_path / "r", "m")
    assert parsed(tmp_path / "r", "m").input[0].name == odd


def test_versions_follow_each_other_and_never_change(tmp_path: Path, cnn: Path) -> None:
    root = tmp_path / "r"
    assert [packaging.triton(str(cnn), root, "m").version for _ in range(2)] == [1, 2]
    assert packaging.triton(str(cnn), root, "m", version=7).version == 7
    assert packaging.triton(str(cnn), root, "m").version == 8
    with pytest.raises(UsageError, match="is there already"):
        packaging.triton(str(cnn), root, "m", version=7)
    assert sorted(p.name for p in (root / "m").iterdir()) == ["1", "2", "7", "8", "config.pbtxt"]


def test_external_data_comes_along(tmp_path: Path, cnn: Path) -> None:
    io.save(io.load(cnn), tmp_path / "big.onnx", external=True)
    done = packaging.triton(str(tmp_path / "big.onnx"), tmp_path / "r", "m")
    assert len(done.files) == 3
    assert np.array_equal(*(_weights(p) for p in (cnn, tmp_path / "r" / "m" / "1" / "model.onnx")))


def _weights(path: Path) -> Any:
    value = io.load(path).graph.initializers["w0"].const_value
    assert value is not None
    return value.numpy()


def test_what_can_not_be_packaged_leaves_nothing(tmp_path: Path, cnn: Path) -> None:
    onnx.save(zoo.scalar(), tmp_path / "scalar.onnx")
    with pytest.raises(UsageError, match="has no open dimension"):
        packaging.triton(str(tmp_path / "scalar.onnx"), tmp_path / "r", "m", max_batch=4)
    with pytest.raises(ModelError):
        packaging.triton(str(tmp_path / "none.onnx"), tmp_path / "r", "m")
    assert not (tmp_path / "r").exists()
    (tmp_path / "file").write_text("")
    for root, name in ((tmp_path, "file"), (tmp_path / "file", "m")):
        with pytest.raises(OutputError):
            packaging.triton(str(cnn), root, name)


def test_the_verb(bnfold: Any, tmp_path: Path, cnn: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from bnfold import report

    outcome: Outcome = bnfold("package", "triton", cnn, "-o", tmp_path / "r", "--name", "digits", "--json")
    found = json.loads(outcome.out)
    jsonschema.validate(found, report.schema("package"), cls=jsonschema.Draft202012Validator)
    assert (found["version"], outcome.code) == (1, 0)
    outcome = bnfold("package", "triton", cnn, "-o", tmp_path / "r", "--name", "digits")
    assert str(tmp_path / "r" / "digits" / "2" / "model.onnx") in outcome.out.replace("\n", "")
    assert bnfold("package", "triton", cnn, "-o", tmp_path / "r", "--name", "a/b").code == 2


def test_a_name_that_is_not_given_is_that_of_the_file(bnfold: Any, tmp_path: Path, cnn: Path) -> None:
    """As `bnfold serve` calls it, and said; a path is printed as it is, whatever rich would make of it."""
    root = tmp_path / "[bold]r"
    for version in (1, 2):
        outcome: Outcome = bnfold("package", "triton", cnn, "-o", root)
        files = [root / "cnn" / "config.pbtxt", root / "cnn" / str(version) / "model.onnx"]
        assert outcome.out.replace("\n", "") == "".join([f"cnn, version {version}", *map(str, files)])
    odd = cnn.rename(tmp_path / ".my model\u00e9.onnx")
    assert packaging.triton(str(odd), root).name == repository(odd).names()[0] == "my_model_"


def test_a_manifest_for_kserve(bnfold: Any) -> None:
    outcome: Outcome = bnfold("package", "kserve", "--name", "digits", "--storage", "s3://bucket/models", "--gpu")
    manifest = json.loads(outcome.out)
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = manifest["spec"]["predictor"]["model"]
    assert (model["protocolVersion"], model["storageUri"]) == ("v2", "s3://bucket/models")
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for words in (("--name", "No_Label", "--storage", "s3://b"), ("--name", "a", "--storage", "/here")):
        assert bnfold("package", "kserve", *words).code == 2
