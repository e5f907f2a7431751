"""A request and its answer, as every transport hands them to the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bnfold.arrays import Array


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a request: what it calls itself and what it holds."""

    name: str
    datatype: str
    array: Array


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. `outputs` names those it wants, in order; empty means all. `timeout` is in seconds."""

    model: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    id: str = ""
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What it gets: the version that answered and its outputs by name, each with its datatype."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, Array]
    datatypes: Mapping[str, str] = field(default_factory=dict)
