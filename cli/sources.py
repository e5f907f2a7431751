"""Options for what is a PyTorch model: shared by the verbs that load one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from bnfold.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

_LOADING = (
    click.option("--weights", metavar="PATH", help="Weights for package.module:factory, .safetensors or .pt."),
    click.option("--prefix", metavar="TEXT", help="Take the weights under this prefix.  [default: found]"),
    click.option("--ema", is_flag=True, help="Take the averaged weights."),
    click.option("--partial", is_flag=True, help="Load what fits of the weights and say what does not."),
    click.option("--kwargs", metavar="JSON", help="Keywords for the factory, as a JSON object."),
)


def loading(function: F) -> F:
    """The options that say how a module is built and which weights it gets, handed to the verb as one `how`."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        how = {name: kwargs.pop(name) for name in ("weights", "prefix", "ema", "partial")}
        how["kwargs"] = json_object("--kwargs", kwargs.pop("kwargs"))
        return function(*args, how=how, **kwargs)

    for option in reversed(_LOADING):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]


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
