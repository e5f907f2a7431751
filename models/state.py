"""The state of an unfinished training as one safetensors file: all tensors, and the rest as JSON in its metadata.

What Lightning would pickle is a tree of dicts, lists and tuples with tensors and plain values at its leaves. Reading
one back runs no code, and floats come back bit for bit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import CheckpointIO
from torch import Tensor

from bnfold.errors import ModelError
from bnfold.files import replacing
from bnfold.models.weights import read_safetensors

_KEY = "bnfold.state"
_PLAIN = (str, int, float, bool, type(None))

# A dict with one of these keys is not the user's but ours; all other dicts are written as pairs.
_TENSOR, _TUPLE, _DICT = "tensor", "tuple", "dict"


class SafeIO(CheckpointIO):
    """Lightning's checkpoints as safetensors files; raises `ModelError` for a file that is not one of them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the tree to `path`, whole or not at all."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        text = json.dumps(_flat(checkpoint, tensors))
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, {_KEY: text}))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read the tree from `path`; its tensors are on the CPU."""
        return read_state(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file."""
        Path(path).unlink(missing_ok=True)


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tree that `SafeIO` wrote; raises `ModelError` where the file is missing, damaged or another one."""
    metadata, tensors = read_safetensors(path)
    if _KEY not in metadata:
        raise ModelError(f"{path}: not the state of a training; give the folder that --log wrote")
    try:
        tree: dict[str, Any] = _tree(json.loads(metadata[_KEY]), tensors)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{path}: the state is damaged; train again without --resume") from error
    return tree


def _flat(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON takes it; its tensors go to `tensors`, by number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory, as a state and its averages may.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {_DICT: [[_flat(key, tensors), _flat(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_flat(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_flat(item, tensors) for item in value]
    if type(value) in _PLAIN:
        return value
    raise TypeError(f"{type(value).__name__} has no place in a safe checkpoint")


def _tree(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_tree(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _TUPLE:
        return tuple(_tree(item, tensors) for item in content)
    return {_tree(key, tensors): _tree(item, tensors) for key, item in content}
