"""Guards of the fold, each broken in one place: what the tests must notice (`python -m tests.run_mutants` lets them).

Most mutants are read off the source: every guard clause never holds, every operand of `and` and `or` has no say, every
choice takes its second branch, every minus is dropped. `FORMULAS` adds what such a change can't reach: a factor, an
axis, an order. A mutant that can't change a result stands in `EQUIVALENT` with the reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "bnfold"
RULES = tuple(f"rules/{path.name}" for path in sorted((PACKAGE / "rules").glob("[a-z]*.py")))
FOLDING = tuple(f"folding/{name}.py" for name in ("plan", "agreement", "walk", "joint", "commit", "fold"))
GUARDED = (*RULES, *FOLDING, "graph/soundness.py", "graph/access.py", "derived.py")


# File and label of what no test can notice, and why.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("rules/base.py", "Refusal.on: value is None → False"): "a checked model names all operands that a rule asks for",
    ("rules/joins.py", "_sum_hoist: not wanted.shifts → False"): "the same step is offered once for each operand",
    ("rules/joins.py", "_choice_hoist: blocked is not None → True"): "only what lost its sign can be the identity",
    ("rules/einsum.py", "_hoist: isinstance(equation, Refusal) → False"): "refused by the law for constants before",
    ("rules/einsum.py", "_sink: isinstance(equation, Refusal) → False"): "refused by the law for constants before",
    ("rules/linear.py", "_on_bias: axis >= 0 → True"): "more axes than a bias has are refused later",
    ("rules/sources.py", "_fits: dim == 1 → False"): "what enlarges the value is asked about once more, to no avail",
    ("folding/plan.py", "_demand: math.prod(held.shape.numpy()) == 1 → True"): "a constant that stays need not be new",
    ("folding/plan.py", "_sink: is_floating(value) → True"): "no source is found among integers",
    ("folding/plan.py", "_sink: tensor(value) is None → True"): "no source is found among constants",
    ("folding/plan.py", "_sink: settle → True"): "what is computed at once goes on by itself",
    ("folding/plan.py", "_hoist: producer in starts → False"): "a chain gains no more as a pair than one by one",
    ("folding/plan.py", "_sink: consumer in starts → False"): "a chain gains no more as a pair than one by one",
    ("folding/fold.py", "_Folding.run: Reason.UNKNOWN_SHAPE in {kept.reason for kept in self.refused.values()} → True"):
        "what fails for another reason fails again",
    ("graph/soundness.py", "check_functions: not functions → False"): "without functions nothing is counted",
    ("graph/access.py", "note: not sizes → False"): "the same sizes are written again",
    ("graph/access.py", "_evaluated: _CONSTANT in value.meta → False"): "the same is computed again",
    ("graph/access.py", "_evaluated: x.nbytes <= CONSTANT_BYTES → True"): "what is computed of it is too large as well",
    ("derived.py", "Derived.exact: self._kept is not None → False"): "the same is computed again",
    ("derived.py",
     "Derived.range_fault: peak.size and normal <= peak.min() and peak.max() <= float(limits.max) → False"):
        "what follows finds no fault either",
    ("derived.py", "Derived.range_fault: lost.any() → True"): "where nothing is lost nothing more is",
    ("derived.py", "Derived.slices: block >= rows → False"): "one block holds all rows then",
}

FORMULAS: tuple[tuple[str, str, str], ...] = (
    ("affine.py", "self.scale * inner.shift + self.shift", "inner.shift + self.shift"),
    ("affine.py", "self.scale * inner.scale", "inner.scale"),
    ("derived.py", "low = peak < normal", "low = peak < 0"),
    ("derived.py", "bits | 1, bits", "bits, bits"),
    ("derived.py", "SLICE_BYTES * rows", "SLICE_BYTES"),
    ("rules/linear.py", "return alpha * response", "return response"),
    ("rules/linear.py", "blocks.transpose(0, 2, 1)", "blocks"),
    ("rules/linear.py", "view.weight.scaled(view.into(fact.scale)", "view.weight.scaled(view.out(fact.scale)"),
    ("rules/recurrent.py", "[held.values() @ vector, np.zeros((directions, rows))]",
     "[np.zeros((directions, rows)), held.values() @ vector]"),
    ("rules/quantized.py", "np.abs(factor)", "factor"),
    ("rules/sources.py", "scale = gamma / np.sqrt(var", "scale = gamma / (var"),
    ("rules/sources.py", "shift = beta - mean * scale", "shift = beta - mean"),
    ("rules/sources.py", '"Div": (1.0 / c, zero)', '"Div": (c, zero)'),
    ("rules/tracing.py", "_runs(source[i:][::-1], target[j:][::-1])", "_runs(source[::-1], target[::-1])"),
    ("rules/moves.py", 'if mode == "CRD":', 'if mode == "DCR":'),
    ("rules/joins.py", "equal = all(scale == scales[0] for scale in scales)", "equal = True"),
    ("rules/bilinear.py", 'inner.type != "Identity" and', 'inner.type not in ("Identity", "Neg") and'),
    ("folding/plan.py", "whole=rest == facts[use[1]]", "whole=True"),
    ("folding/commit.py", 'value.name = names.folded(value.name)', "pass"),
    ("graph/surgery.py", "while name in self.taken:", "while False:"),
)


@dataclass(frozen=True)
class Mutant:
    """A change of one place of a source file, given in bytes."""

    file: str
    where: str
    start: int
    end: int
    old: str
    new: str

    @property
    def label(self) -> str:
        return f"{self.where}: {' '.join(self.old.split())} → {self.new}"

    def __str__(self) -> str:
        return f"{self.file} {self.label}"

    @property
    def lines(self) -> range:
        """The numbers of the lines that it changes."""
        first = (PACKAGE / self.file).read_bytes()[: self.start].count(b"\n") + 1
        return range(first, first + self.old.count("\n") + 1)

    def source(self) -> str:
        """The file with the change."""
        data = (PACKAGE / self.file).read_bytes()
        lines = "\n" * self.old.count("\n")  # those behind keep their numbers
        return (data[: self.start] + (self.new + lines).encode() + data[self.end :]).decode()


def mutants() -> list[Mutant]:
    """Every mutant that a test has to notice."""
    found = [mutant for file in GUARDED for mutant in guards(file)]
    found += [formula(*row) for row in FORMULAS]
    return [mutant for mutant in found if (mutant.file, mutant.label) not in EQUIVALENT]


def guards(file: str) -> Iterator[Mutant]:
    """The mutants that are read off one file, in the order of its lines."""
    data = (PACKAGE / file).read_bytes()
    lines = [0]
    for line in data.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    labels: set[str] = set()
    for where, node, new in _places(ast.parse(data)):
        start = lines[node.lineno - 1] + node.col_offset
        end = lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        mutant = Mutant(file, where, start, end, data[start:end].decode(), new)
        # Of equal conditions in one function each counts.
        while mutant.label in labels:
            mutant = Mutant(file, f"{mutant.where}′", start, end, mutant.old, new)
        labels.add(mutant.label)
        yield mutant


def _places(tree: ast.Module) -> Iterator[tuple[str, ast.expr, str]]:
    for outer in tree.body:
        members = outer.body if isinstance(outer, ast.ClassDef) else [outer]
        for member in members:
            if not isinstance(member, ast.FunctionDef):
                continue
            where = f"{outer.name}.{member.name}" if isinstance(outer, ast.ClassDef) else member.name
            for node in ast.walk(member):
                if isinstance(node, ast.If) and isinstance(node.body[-1], (ast.Return, ast.Raise, ast.Continue)):
                    yield where, node.test, "False"
                elif isinstance(node, ast.BoolOp):
                    silent = "True" if isinstance(node.op, ast.And) else "False"
                    for operand in node.values:
                        # What stands at the end of `x or 0` is no guard.
                        if not isinstance(operand, ast.Constant) and ast.unparse(operand) not in ("()", "{}"):
                            yield where, operand, silent
                elif isinstance(node, ast.IfExp):
                    yield where, node.test, "False"
                elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                    yield where, node, ast.unparse(node.operand)


def formula(file: str, old: str, new: str) -> Mutant:
    """A mutant of the table: the text stands in the file exactly once."""
    data = (PACKAGE / file).read_bytes()
    assert data.count(old.encode()) == 1, f"{file} holds {data.count(old.encode())} times {old!r}"
    start = data.index(old.encode())
    return Mutant(file, "formula", start, start + len(old.encode()), old, new)
