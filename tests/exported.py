"""What tests of the export share: a small module, and what is asked of the model that it becomes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from tests.architectures import seeded

EXPORTERS = ("dynamo", "torchscript")


def conv_bn() -> nn.Module:
    return seeded(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU()))


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


def names(values: Any) -> list[str]:
    return [f"{value.name}{value.shape}".replace(",", ", ") for value in values]


def run(model: ir.Model, *inputs: Tensor) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)


def agrees(model: ir.Model, module: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected = module(*inputs)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    for mine, theirs in zip(run(model, *inputs), expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-4)
