"""Results as JSON documents with a versioned schema, and as tables."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

VERSION = 1


def document(verb: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The JSON document of a verb's result: the payload under the name and version of its schema."""
    return {"schema": f"bnfold.{verb}/{VERSION}", **payload}


def schema(verb: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that `document(verb, …)` meets."""
    text = resources.files(__package__).joinpath("schemas", f"{verb}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
