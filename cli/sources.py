"""Options for what is a PyTorch model: shared by the verbs that load one."""

from __future__ import annotations

import json
from typing import Any

from bnfold.cli.options import Option, gathered
from bnfold.errors import InputError


def _how(kwargs: str | None, **found: Any) -> dict[str, Any]:
    return {**found, "kwargs": json_object("--kwargs", kwargs)}


# How a module is built and which weights it gets, as one mapping `how`.
loading = gathered("how", (
    Option("--weights", metavar="FILE", help="Weights for package.module:factory, .safetensors or .pt."),
    Option("--prefix", metavar="NAME", help="Take the weights under this prefix.  [default: found]"),
    Option("--ema", is_flag=True, help="Take the averaged weights."),
    Option("--partial", is_flag=True, help="Load what fits of the weights and say what does not."),
    Option("--kwargs", metavar="JSON", help="Keywords for the factory, as a JSON object."),
), into=_how)  # fmt: skip


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """The keywords in a JSON object. Raises `InputError` for anything else."""
    sample = f"write it like {option} '{{\"width\": 2}}'"
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"{option} {text}: {error}; {sample}") from error
    if not isinstance(found, dict):
        raise InputError(f"{option} {text}: is no JSON object; {sample}")
    return found


def keyword(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` with the value as JSON, or as text where it is none. Raises `InputError` for anything else."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(f"--arg {text}: write it like --arg num_classes=10")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
