"""Checkpoints: one `.safetensors` file of weights whose metadata says how to rebuild the module around them.

The format (https://huggingface.co/docs/safetensors) is a JSON header and raw tensors, so reading one runs no
code: the architecture comes from the registry, never from the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from bnfold.errors import BnfoldError, ModelError
from bnfold.models import registry
from bnfold.models.weights import first_line, load_weights, read_safetensors

if TYPE_CHECKING:
    from torch import nn

VERSION = 1
_KEY = "bnfold.checkpoint"


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says about its weights.

    `score`, of the kind `metric`, is the architecture's on the held-out part of `data`, split with `data_seed`, in eval
    mode; 1 is the best.
    """

    arch: str
    kwargs: dict[str, Any]
    input_shape: tuple[int, ...]
    data: str
    data_seed: int
    seed: int
    epochs: int
    score: float
    torch: str
    metric: str = "accuracy"
    version: int = VERSION


@dataclass(frozen=True)
class Checkpoint:
    """A trained module in eval mode, on the CPU, and its `Meta`."""

    module: nn.Module
    meta: Meta


def save_checkpoint(module: nn.Module, meta: Meta, path: str | os.PathLike[str]) -> None:
    """Write weights and metadata to `path`, which holds the old file or the complete new one, never a part.

    Raises `OutputError` where that is not possible; nothing is left behind then, nor on an interrupt.
    """
    from safetensors.torch import save

    from bnfold.files import check_output, replacing

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    content = save(state, metadata={_KEY: json.dumps(asdict(meta))})
    check_output(path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of `bnfold train`: the module in eval mode, and what is known about it.

    Nothing is unpickled and no code is taken from the file. Raises `ModelError` for a file that is missing,
    damaged or no such checkpoint.
    """
    import torch

    metadata, state = read_safetensors(path)
    meta = _meta(path, metadata)
    try:
        # On the meta device a damaged or hostile width allocates nothing before the shapes are compared.
        with torch.device("meta"):
            module = registry.build(meta.arch, **meta.kwargs)
    except (BnfoldError, RuntimeError, MemoryError, OverflowError) as error:
        raise ModelError(f"{path}: its architecture can't be built here: {first_line(error)}") from error
    load_weights(module, state, path, assign=True)
    return Checkpoint(module.eval(), meta)


def _meta(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> Meta:
    if _KEY not in metadata:
        hint = "for other weights name the model as package.module:factory and give this file as --weights"
        raise ModelError(f"{path}: not a checkpoint of `bnfold train`; {hint}")
    try:
        values = json.loads(metadata[_KEY])
        version = int(values["version"])
        if version > VERSION:
            raise ModelError(
                f"{path}: checkpoint format {version} is newer than {VERSION}, the newest known; upgrade bnfold"
            )
        known = {field.name for field in fields(Meta)}
        meta = Meta(**{key: value for key, value in values.items() if key in known})
        meta = replace(meta, input_shape=tuple(int(size) for size in meta.input_shape))
        if not isinstance(meta.arch, str) or not isinstance(meta.kwargs, dict) or min(meta.input_shape) < 1:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: the checkpoint's metadata is damaged; train it again") from error
    return meta
