"""The table of graph patterns: what folding makes of each, and a refusing twin for each.

A case is a graph in the notation of `tests.graphs`, the operators that are left of it, and the judgement that its
BatchNormalizations took. Its twin is the same text with a few replacements, after which the fold must be refused (the
reason codes of the BatchNormalizations that are kept) or must leave something else.
"""

from __future__ import annotations

from tests.cases import bodies, commutes, convolutions, joins, layers, moves, plans, products, sources
from tests.cases.base import Case, Graph

CASES: tuple[Case, ...] = (
    *convolutions.CASES,
    *products.CASES,
    *sources.CASES,
    *moves.CASES,
    *commutes.CASES,
    *joins.CASES,
    *layers.CASES,
    *bodies.CASES,
    *plans.CASES,
)

__all__ = ["CASES", "Case", "Graph"]
