"""The table of mutants fits the source, and breaking a guard shows; `make soak` lets the tests notice every mutant."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import pytest

from tests.conftest import REPOSITORY
from tests.mutants import EQUIVALENT, FORMULAS, GUARDED, formula, guards, mutants

_BROKEN = """
import sys
from tests.graphs import build, folded
from tests.mutants import mutants
from tests.run_mutants import apply
model = build("(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = BN(x, A.3)  y = Conv <pads = [1,1,1,1]> (a, w[4,3,3,3]) }")
before = folded(model)[1].folded
(mutant,) = [mutant for mutant in mutants() if str(mutant) == sys.argv[1]]
apply(mutant)
print(before, folded(model)[1].folded)
"""


@pytest.mark.parametrize("file", GUARDED)
def test_every_mutant_of_a_file_is_python(file: str) -> None:
    found = list(guards(file))
    assert len({mutant.label for mutant in found}) == len(found)
    for mutant in found[:: max(1, len(found) // 8)]:
        ast.parse(mutant.source())


@pytest.mark.parametrize("row", FORMULAS, ids=[f"{file}: {new}" for file, _, new in FORMULAS])
def test_a_formula_of_the_table_stands_in_the_source(row: tuple[str, str, str]) -> None:
    ast.parse(formula(*row).source())


def test_what_is_called_equivalent_exists() -> None:
    labels = {(mutant.file, mutant.label) for file in GUARDED for mutant in guards(file)}
    assert EQUIVALENT.keys() <= labels


def test_every_refusing_module_has_mutants() -> None:
    """A guard that refuses is an `if`; where a module refuses, mutants are read off it."""
    counts = Counter(mutant.file for mutant in mutants())
    assert counts.total() > 500
    for file in GUARDED:
        refusals = (REPOSITORY / "bnfold" / file).read_text().count("return Refusal(")
        assert counts[file] >= refusals, file


def test_a_broken_guard_changes_what_is_folded() -> None:
    """Without the guard of the border a shift passes into a padded convolution."""
    name = "rules/linear.py sinking: fact.shifts and view.bordered → False"
    command = [sys.executable, "-c", _BROKEN, name]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "0 1\n"
