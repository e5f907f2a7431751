"""torch's two exporters, each made to leave BatchNorm alone.

Both fold BN after a convolution by themselves. Here neither does: the dynamo exporter runs without its optimizer,
TorchScript without its eval-mode peephole pass.
"""

from __future__ import annotations

import inspect
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn

from bnfold.exporting.dynamic import BATCH, Axes
from bnfold.exporting.naming import name_nodes, rename
from bnfold.io import INLINE_LIMIT

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Tensors = dict[str, Tensor]
# Module, examples, names of the outputs, opset, free axes of inputs, outputs whose first axis is the batch.
Writer = Callable[[nn.Module, Tensors, "list[str] | None", "int | None", Axes, set[str]], ir.Model]


def dynamo(
    module: nn.Module, examples: Tensors, outputs: list[str] | None, opset: int | None, axes: Axes, batched: set[str]
) -> ir.Model:
    """Export through torch.export."""
    names = {dim: torch.export.Dim(dim) for places in axes.values() for dim in places.values()}
    flat = iter([{axis: names[d] for axis, d in axes[name].items()} if name in axes else None for name in examples])
    bound = inspect.signature(module.forward).bind(*examples.values()).arguments
    shapes = {
        name: tuple(next(flat) for _ in value) if isinstance(value, tuple) else next(flat)
        for name, value in bound.items()
    }
    program = torch.onnx.export(
        module,
        tuple(examples.values()),
        dynamo=True,
        optimize=False,
        external_data=False,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=shapes if axes else None,
    )
    assert program is not None
    return _finished(program.model, list(examples), outputs, dict(module.named_modules()))


def from_program(program: ExportedProgram, opset: int | None) -> ir.Model:
    """Export what torch.export has traced already, with the dynamic shapes that it has."""
    written = torch.onnx.export(
        program, dynamo=True, optimize=False, external_data=False, verbose=False, opset_version=opset
    )
    assert written is not None
    model: ir.Model = written.model
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    names = ["input"] if len(inputs) == 1 else [str(value.name) for value in inputs]
    return _finished(model, names, ["output"] if len(outputs) == 1 else None, ())


def _finished(model: ir.Model, inputs: list[str], outputs: list[str] | None, modules: object) -> ir.Model:
    from onnxscript import optimizer

    # Without its optimizer the exporter leaves constants as arithmetic: a missing bias is Expand(CastLike(0)).
    optimizer.fold_constants(model)
    # An input that is returned as it is gets an Identity, so that it can have two names.
    passes.OutputFixPass()(model)
    rename(model, [*model.graph.inputs, *model.graph.outputs], [*inputs, *(outputs or [])])
    name_nodes(model, modules if isinstance(modules, dict) else ())
    return model


def torchscript(
    module: nn.Module, examples: Tensors, outputs: list[str] | None, opset: int | None, axes: Axes, batched: set[str]
) -> ir.Model:
    """Export by tracing."""
    from bnfold.models.quiet import mute

    free = {name: dict(places) for name, places in axes.items()}
    free |= {name: {0: BATCH} for name in batched if name not in free}
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    with mute(), tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        # What protobuf can't hold in one message goes through files, which the exporter writes by itself.
        large = size > INLINE_LIMIT
        target: io.BytesIO | str = str(Path(folder) / "model.onnx") if large else io.BytesIO()
        torch.onnx.export(
            module,
            tuple(examples.values()),
            target,  # type: ignore[arg-type]
            dynamo=False,
            verbose=False,
            # The module is in eval mode; asking for EVAL as well would switch the folding of BN on.
            training=torch.onnx.TrainingMode.PRESERVE,
            opset_version=opset,
            input_names=list(examples),
            output_names=outputs,
            dynamic_axes=free,
        )
        if isinstance(target, str):
            model = ir.load(target)
            ir.external_data.load_to_model(model)
        else:
            model = ir.serde.deserialize_model(onnx.ModelProto.FromString(target.getvalue()))
    name_nodes(model, dict(module.named_modules()))
    return model


WRITERS: dict[str, Writer] = {"dynamo": dynamo, "torchscript": torchscript}
