"""A PyTorch module as an ONNX model whose BatchNorms are all still there: what folding starts from.

The calls of batch_norm in PyTorch are counted against the BatchNormalization nodes in ONNX, and the model is held
against the module at once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx.defs import onnx_opset_version

from bnfold.errors import ModelError, RejectedError, UsageError
from bnfold.exporting.dynamic import BATCH, Axes, free_axes
from bnfold.graph import BATCH_NORM, node_count, nodes_within, total_bytes
from bnfold.graph.skeleton import check
from bnfold.io import INLINE_LIMIT

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bnfold.audit.data import Given
    from bnfold.audit.findings import AuditFinding
    from bnfold.exporting.proof import Proof
    from bnfold.exporting.trial import Trial
    from bnfold.models.examples import Inputs

    Tensors = dict[str, torch.Tensor]

# Paths and source lines of the machine that exported are nobody's business in a deployed model.
_PRIVATE = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
EXPORTERS = ("dynamo", "torchscript")


def export(
    source: nn.Module | str | os.PathLike[str],
    *,
    inputs: Inputs | None = None,
    weights: str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    ema: bool = False,
    partial: bool = False,
    trust: bool = False,
    opset: int | None = None,
    exporter: str = "dynamo",
    dynamic_batch: bool = True,
    dynamic: Iterable[str] | Mapping[str, Mapping[int, str]] = (),
    verify: bool = True,
    audit: Callable[[Sequence[AuditFinding]], None] | None = None,
    data: Given | None = None,
    note: Callable[[str], None] | None = None,
) -> ir.Model:
    """Export a module in eval mode to ONNX, every BatchNorm kept; its weights are copied.

    `source` is a module, the path of a checkpoint of `bnfold train`, or `"package.module:factory"`, which is called
    with `kwargs` and given `weights` (`.safetensors`, or `.pt`/`.pth` that need no unpickling of code): those under
    `prefix` or, with `ema`, the averaged ones; with `partial` what fits of them. A `.pt2` archive of torch.export is
    read only with `trust`, since it may run code. `inputs` are examples in forward's order: tensors, arrays, or
    `"[NAME:]1x3x224x224[:float32]"`; the keys of a mapping name the ONNX inputs. A checkpoint knows its own. One input
    is called `input` and one output `output` unless named.

    With `dynamic_batch` the first axis of the first input, and of every other of that size, is free and called `batch`;
    `dynamic` frees others, as `"INPUT:AXIS=NAME"`. The model is held against the module by the rule of
    `bnfold.verify`, unless `verify` is False. `audit` is told the findings about the module's BatchNorms, on `data`
    where given, once the arguments fit and before anything is converted; it may raise. `note` is told what the user
    should know but need not change; without it that is a warning.

    Raises `UsageError` for arguments that do not fit together, `InputError` for examples that do not, `ModelError`
    for a source that can't be loaded, a BN without running statistics, or a model that the exporter can't convert, and
    `RejectedError` where the result is not the module.

    >>> model = export("digits.safetensors")  # doctest: +SKIP
    """
    if exporter not in EXPORTERS:
        raise UsageError(f"no exporter is called {exporter!r}; give {' or '.join(EXPORTERS)}")
    newest = onnx_opset_version()
    if opset is not None and not 1 <= opset <= newest:
        raise UsageError(f"there is no opset {opset}; ONNX has 1 to {newest}")
    try:
        import torch

        from bnfold.exporting.trial import run
        from bnfold.models.examples import examples, sharing_batch
        from bnfold.models.modules import load_module
    except ModuleNotFoundError as error:
        raise UsageError(f'export needs {error.name}: pip install "bnfold[torch]"') from error
    tell = note or (lambda text: warnings.warn(text, UserWarning, stacklevel=3))
    if not isinstance(source, torch.nn.Module) and Path(source).suffix == ".pt2":
        return _archived(source, trust, opset, exporter)
    if isinstance(source, torch.nn.Module):
        if weights is not None or kwargs:
            raise UsageError("weights and kwargs belong to package.module:factory; this module is already built")
        label, module, shape = type(source).__name__, source, None
        _note_training(module, tell)
    else:
        label = os.fspath(source)
        module, shape = load_module(
            source, weights=weights, kwargs=kwargs, prefix=prefix, ema=ema, partial=partial, tell=tell
        )
    _require_statistics(module, label)
    if inputs is None and shape is None:
        raise UsageError(f"{label}: give an example input, such as 1x3x224x224")
    given = examples(
        torch.zeros(2, *(shape or ())) if inputs is None else inputs, module, label=label, batch=dynamic_batch
    )
    axes = free_axes(dynamic, given, sharing_batch(given) if dynamic_batch else set())
    trial = run(module, given, axes, label)
    if audit is not None:
        audit(_findings(module, data))
    model, heard = _convert(module, given, trial, label, exporter, opset, axes)
    for text in heard:
        tell(text)
    model = _checked(_tidied(model), label)
    if verify:
        proof = _proven(model, module, given, axes, label, exporter)
        if proof.doubt is not None:
            tell(str(proof))
    return model


def _findings(module: nn.Module, data: Given | None) -> Sequence[AuditFinding]:
    from bnfold.audit import audit

    return audit(module, data).findings


def _convert(
    module: nn.Module, given: Tensors, trial: Trial, label: str, exporter: str, opset: int | None, axes: Axes
) -> tuple[ir.Model, list[str]]:
    """What the exporter makes of the module, held to what was asked of it; and what the user should hear."""
    import torch

    from bnfold.exporting.writers import WRITERS
    from bnfold.models.modules import eval_mode
    from bnfold.models.quiet import silence

    with eval_mode(module), torch.no_grad(), silence() as heard:
        try:
            model = WRITERS[exporter](module, given, trial.names, opset, axes, trial.batched)
        except Exception as error:
            # Whatever torch's exporters meet, they raise something of their own; all of it is about the user's model.
            raise _failure(label, exporter, error) from error
    written = model.opset_imports.get("", 0)
    if opset is not None and written != opset:
        raise UsageError(f"the {exporter} exporter writes opset {written} instead of {opset}; ask for {written}")
    for value in model.graph.inputs:
        for axis, dim in axes.get(value.name or "", {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                hint = "--static-batch" if dim == BATCH else f"a size of its own, without --dynamic for {dim}"
                size = f"a {dim} of {value.shape[axis]}"
                raise ModelError(f"{label}: works for {size} only; export it with {hint}")
    found = node_count(model, BATCH_NORM)
    if found < trial.batch_norms:
        ran = f"{trial.batch_norms} batch norms ran"
        raise ModelError(f"{label}: {ran}, the {exporter} exporter kept {found}; {_other(exporter)}")
    traced = [str(w.message) for w in heard if w.category.__name__ == "TracerWarning"]
    return model, [f"tracing may have frozen a choice that depends on the input: {text}" for text in traced]


def _proven(
    model: ir.Model, module: nn.Module, given: Tensors, axes: Axes, label: str, exporter: str
) -> Proof:
    import torch

    from bnfold.exporting.proof import prove
    from bnfold.models.modules import eval_mode

    try:
        with eval_mode(module), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return prove(model, module, given, axes, label)
    except RejectedError as error:
        raise RejectedError(f"{error}; {_other(exporter)}") from error


def _archived(source: str | os.PathLike[str], trust: bool, opset: int | None, exporter: str) -> ir.Model:
    """Export a program that torch.export has saved; its dynamic shapes and its mode are settled in it."""
    import torch

    from bnfold.exporting.writers import from_program
    from bnfold.models.quiet import silence
    from bnfold.models.weights import first_line, require_file

    label = os.fspath(source)
    require_file(label)
    if not trust:
        raise UsageError(f"{label}: such an archive may run code when it is read; where you trust it, give --trust")
    if exporter != "dynamo":
        raise UsageError(f"{label}: a program of torch.export goes through the dynamo exporter only")
    with silence():
        try:
            program = torch.export.load(label)
        except Exception as error:
            raise ModelError(f"{label}: can't be read as an archive of torch.export: {first_line(error)}") from error
        try:
            model = from_program(program, opset)
        except Exception as error:
            raise _failure(label, exporter, error) from error
    return _checked(_tidied(model), label)


def _note_training(module: nn.Module, tell: Callable[[str], None]) -> None:
    """Tell of parts that were left in training mode: what runs in Python is then not what is exported."""
    # The root is in training mode in any freshly built module; if only a part is, that part is the news.
    name, part = next(((name, part) for name, part in module.named_modules() if part.training), ("", None))
    if part is not None:
        where = f"{name} ({type(part).__name__})" if name else "the module"
        tell(f"{where} was in training mode; exported in eval mode, with its running statistics")


def _require_statistics(module: nn.Module, label: str) -> None:
    """Raise `ModelError` for a BN that has no running statistics: in eval mode it still normalises by the batch's."""
    from torch.nn.modules.batchnorm import _BatchNorm

    found = [
        name for name, part in module.named_modules() if isinstance(part, _BatchNorm) and part.running_mean is None
    ]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelError(
            f"{label}: {found[0] or 'the module'}{more} keeps no running statistics (track_running_stats=False), so"
            " its output depends on the batch and can't be frozen; build it with track_running_stats=True and train it"
        )


def _tidied(model: ir.Model) -> ir.Model:
    """The exporter's model with its own copy of the weights, and without what nothing reads."""
    result = ir.passes.Sequential(
        passes.IdentityEliminationPass(), passes.RemoveUnusedNodesPass(), passes.RemoveUnusedOpsetsPass()
    )(model)
    for value in result.model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)
    for node in nodes_within(result.model.graph):
        for key in _PRIVATE:
            node.metadata_props.pop(key, None)
    return result.model


def _checked(model: ir.Model, label: str) -> ir.Model:
    try:
        if total_bytes(model) > INLINE_LIMIT:
            check(model)  # protobuf can't hold the whole
        else:
            passes.CheckerPass(full_check=True)(model)
    except Exception as error:
        from bnfold.models.weights import first_line

        raise ModelError(
            f"{label}: the exporter wrote a model that is not valid ONNX: {first_line(error)}; try another opset"
        ) from error
    return model


def _failure(label: str, exporter: str, error: Exception) -> ModelError:
    """One line from torch's report of many: what was at the bottom of it."""
    from bnfold.models.weights import first_line

    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if "batch" in str(cause) and "constant" in str(cause):
        return ModelError(f"{label}: works for one batch size only; export it with --static-batch")
    if "data-dependent" in str(cause):
        # The other exporter would take it, and freeze the branch that the example went through.
        return ModelError(
            f"{label}: its control flow depends on the values of its inputs; use torch.where or torch.cond"
        )
    return ModelError(f"{label}: the {exporter} exporter can't convert it: {first_line(cause)}; {_other(exporter)}")


def _other(exporter: str) -> str:
    return f"try the {next(name for name in EXPORTERS if name != exporter)} exporter"
