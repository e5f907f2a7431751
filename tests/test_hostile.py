"""Models that were made to mislead, to hang or to say nothing: names, sizes and files that no exporter writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.conftest import Outcome, conv_bn

Bnfold = Callable[..., Outcome]


@pytest.mark.parametrize("name", ["\x1b[31mred\x07", "\u202eabc\u2066", "a\0b", "one\ntwo"], ids=ascii)
def test_a_name_does_nothing_to_a_terminal(bnfold: Bnfold, tmp_path: Path, name: str) -> None:
    """It is escaped in tables and in messages, and is itself in a document."""
    proto, path = conv_bn(layers=1), tmp_path / "m.onnx"
    proto.graph.node[1].name = name
    onnx.save(proto, path)
    assert repr(name)[1:-1] in bnfold("inspect", path).out
    assert json.loads(bnfold("inspect", path, "--json").out)["batch_norms"][0]["node"] == name
    proto.graph.node[1].op_type = name
    onnx.save(proto, path)
    assert bnfold("inspect", path).err.removesuffix("\n").isprintable()
