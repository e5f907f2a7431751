"""An order of a model's nodes that lasts while nodes are put in and taken out."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

Key = tuple[int, ...]


class Numbering:
    """The nodes of a model in an order in which every node follows its producers, numbered once.

    A node put behind another later sorts right after it, without renumbering.
    """

    def __init__(self, nodes: Iterator[ir.Node]) -> None:
        self._keys: dict[ir.Node, Key] = {node: (index,) for index, node in enumerate(nodes)}
        self._followers: dict[ir.Node | None, int] = {}

    def key(self, node: ir.Node) -> Key:
        """Return the sort key of a node."""
        return self._keys[node]

    def nodes(self) -> list[ir.Node]:
        """Return the numbered nodes, in the order of numbering."""
        return list(self._keys)

    def behind(self, node: ir.Node, producer: ir.Node | None) -> None:
        """Number a new node to follow `producer`, or to precede everything."""
        count = self._followers.get(producer, 0) + 1
        self._followers[producer] = count
        # Later followers of one node stand closer to it, as they are inserted.
        base = (-1,) if producer is None else self._keys[producer]
        self._keys[node] = (*base, 1, -count)
