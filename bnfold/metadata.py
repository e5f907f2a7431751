"""JSON in a model's metadata, which anybody may have written there."""

from __future__ import annotations

import json
from typing import Any

import onnx_ir as ir


def read(model: ir.Model, key: str) -> Any:
    """Return what stands under a key; None if nothing does. Raises `ValueError` where it is no JSON."""
    try:
        return json.loads(model.metadata_props.get(key, "null"))
    except RecursionError as error:
        raise ValueError(f"{key} is nested too deeply") from error


def write(model: ir.Model, key: str, content: Any) -> None:
    """Let the metadata hold some content under a key."""
    model.metadata_props[key] = json.dumps(content, separators=(",", ":"))
