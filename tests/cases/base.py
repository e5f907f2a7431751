"""What one row of the table holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from tests.graphs import build


@dataclass(frozen=True)
class Graph:
    """A graph and what folding must make of it.

    `after` lists the operators that are left ("" for all of them), `kept` the reason codes of the
    BatchNormalizations that stay, `by` the judgement of those that go. `exact` says that float32 results are equal
    bit for bit, because no operator divides by anything but a power of two; `runtime` that ONNX Runtime has kernels
    for all of it.
    """

    name: str
    text: str
    after: str
    kept: str = ""
    by: str = ""
    opset: int = 17
    ir_version: int = 8
    exact: bool = True
    constants: Mapping[str, Any] = field(default_factory=dict)
    domains: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    runtime: bool = True
    dtypes: tuple[str, ...] = ("double", "float")

    def model(self, dtype: str = "float") -> onnx.ModelProto:
        """Return the graph as a checked model with floats of `dtype`."""
        return build(
            self.text, dtype=dtype, opset=self.opset, ir_version=self.ir_version,
            constants=self.constants, domains=self.domains,
        )  # fmt: skip

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Case:
    """A graph that folds, and its twin that must not."""

    graph: Graph
    twin: Graph


def case(
    name: str,
    text: str,
    after: str,
    by: str = "",
    *,
    twin: Mapping[str, str],
    kept: str = "",
    left: str = "",
    twin_by: str = "",
    also: str = "",
    twin_opset: int | None = None,
    twin_constants: Mapping[str, Any] | None = None,
    **options: Any,
) -> Case:
    """Build a case: `twin` holds replacements in the text, `kept` and `left` what the twin keeps.

    `also` are the reason codes of BatchNormalizations that the first graph keeps.
    """
    changed = text
    for old, new in twin.items():
        if old not in changed:
            raise ValueError(f"{name}: {old!r} is not in the text")
        changed = changed.replace(old, new)
    graph = Graph(name, text, after, also, by, **options)
    if twin_opset is not None:
        options["opset"] = twin_opset
    if twin_constants is not None:
        options["constants"] = twin_constants
    return Case(graph, Graph(f"{name}, twin", changed, left, kept, twin_by, **options))
