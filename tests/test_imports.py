"""Who may import whom, and what a verb may not pay for."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnfold.cli import VERBS
from tests.conftest import REPOSITORY

FOLDERS = {"bnfold": "bnfold", "cli": "bnfold.cli", "models": "bnfold.models"}


def modules() -> Iterator[tuple[str, Path]]:
    for folder, package in FOLDERS.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


MODULES = dict(modules())


def imports(module: str) -> set[str]:
    """Every module that is imported at run time, functions' own imports included; `if TYPE_CHECKING` is not."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            # `from bnfold import io` imports a module, `from bnfold.io import load` does not.
            found.update(f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES)
            found.add(base)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


IMPORTS = {module: imports(module) for module in MODULES}

_ALGEBRA = "affine derived graph rules"
_LAYERS = f"{_ALGEBRA} merging.costs merging.kernels merging.layers merging.report merging.terms"
_MERGES = f"{_LAYERS} merging.sizes merging.writing"

# Importer, and all of this package that it may import besides `arrays`. What is not named may import what it needs.
MAY = {
    "arrays": "",
    "errors": "",
    "files": "errors",
    "npz": "errors",
    "affine": "",
    "derived": "affine errors",
    "graph": "affine derived errors graph",
    "graph.constants": "",
    "graph.operators": "",
    "graph.tensors": "derived graph.operators",
    "graph.soundness": "errors graph.operators graph.tensors",
    "graph.skeleton": "derived graph.operators graph.tensors",
    "graph.access": "affine derived graph.constants",
    "graph.surgery": "graph.access",
    "graph.shapes": "graph.access graph.constants graph.operators",
    "rules": f"{_ALGEBRA} errors",
    "folding.numbering": "",
    "folding.walk": f"{_ALGEBRA} folding.numbering",
    "folding.agreement": f"{_ALGEBRA} folding.walk",
    "folding.plan": f"{_ALGEBRA} folding.numbering folding.walk folding.agreement",
    "folding.joint": f"{_ALGEBRA} folding.numbering folding.walk folding.plan",
    "folding.commit": f"{_ALGEBRA} folding.numbering folding.walk",
    "folding.functions": "graph rules",
    "metadata": "",
    "constants": "metadata graph",
    "folding.frozen": "metadata affine graph",
    "folding.report": "metadata rules",
    "folding.fold": f"{_ALGEBRA} folding",
    "merging": f"{_ALGEBRA} merging",
    "merging.costs": "",
    "merging.report": "merging.costs",
    "merging.kernels": "affine merging.costs",
    "merging.sizes": "graph",
    "merging.layers": f"{_ALGEBRA} merging.kernels",
    "merging.terms": _LAYERS,
    "merging.writing": _LAYERS,
    "merging.parallel": _MERGES,
    "merging.sequential": _MERGES,
    "merging.exchange": f"{_MERGES} merging.sequential",
    "rewrite": "graph folding.fold folding.frozen folding.report merging",
    "audit.findings": "errors",
    "audit.health": "affine audit.findings folding.frozen graph",
    "io": "derived errors files graph.operators graph.skeleton graph.soundness graph.tensors",
    "providers": "",
    "runtime": "errors files graph io providers",
    "simplify": "errors files graph io",
    "report": "errors files report",
}

# Imported, and those who may.
ONLY = {
    "bnfold.cli": ("bnfold.cli", "bnfold.__main__"),
    "bnfold.models": (
        "bnfold.models", "bnfold.cli", "bnfold.export", "bnfold.exporting", "bnfold.audit.loaded",
    ),
    "bnfold.folding.plan": ("bnfold.folding.fold", "bnfold.folding.joint"),
    "bnfold.pipeline": ("bnfold.cli", "bnfold.serve"),
    "bnfold.runtime": (
        "bnfold.verify", "bnfold.bench", "bnfold.serve", "bnfold.doctor", "bnfold.cli", "bnfold.audit",
        "bnfold.exporting", "bnfold.inputs.isolated_child",
    ),
    "onnxruntime": ("bnfold.runtime",),
    "torch": ("bnfold.export", "bnfold.exporting", "bnfold.audit", "bnfold.verify", "bnfold.models"),
    "lightning": ("bnfold.models",),
    "sklearn": ("bnfold.models",),
    "onnxsim": ("bnfold.simplify",),
    "starlette": ("bnfold.serve",),
    "uvicorn": ("bnfold.serve",),
    "orjson": ("bnfold.serve",),
    "grpc": ("bnfold.serve",),
    "prometheus_client": ("bnfold.serve",),
    "ray": ("bnfold.serve",),
    "threadpoolctl": ("bnfold.verify",),
    "rich": ("bnfold.cli", "bnfold.report", "bnfold.models"),
    "click": ("bnfold.cli",),
    "jinja2": ("bnfold.report.html",),
    "pytest": ("bnfold.pytest_plugin",),
    "onnx.helper": (),
}


def allowed(importer: str) -> list[str]:
    return [f"bnfold.{name}" for name in ("arrays", *MAY[importer].split())]


def lines() -> list[list[str]]:
    """The picture of the layers in docs/design.md, from the top."""
    page = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    picture = page.partition("## Who imports whom")[2].split("```")[1]
    return [line.split(" · ") for line in picture.strip().splitlines()]


def test_every_layer_imports_only_from_the_lines_below_it() -> None:
    depth = {layer: number for number, line in enumerate(lines()) for layer in line}
    arrows = {
        (module.split(".")[1], name.split(".")[1])
        for module, found in IMPORTS.items() for name in found
        if module not in ("bnfold", "bnfold.__main__") and within(name, "bnfold") and name != "bnfold"
    }  # fmt: skip
    assert {layer for arrow in arrows for layer in arrow} == depth.keys()
    assert [arrow for arrow in arrows if arrow[0] != arrow[1] and depth[arrow[0]] >= depth[arrow[1]]] == []


@pytest.mark.parametrize("importer", MAY)
def test_a_layer_imports_only_what_is_below_it(importer: str) -> None:
    for module in (name for name in MODULES if within(name, f"bnfold.{importer}")):
        own = {name for name in IMPORTS[module] if within(name, "bnfold") and name != "bnfold"}
        assert {name for name in own if not within(name, *allowed(importer))} == set(), module


@pytest.mark.parametrize("imported", ONLY)
def test_only_these_import_it(imported: str) -> None:
    importers = {module for module, found in IMPORTS.items() if any(within(name, imported) for name in found)}
    assert {module for module in importers if not within(module, *ONLY[imported])} == set()


def test_imports_run_in_no_circle() -> None:
    """A package is imported with each of its modules, so that only others count."""
    left = {name: {n for n in found if n in MODULES and not within(name, n)} for name, found in IMPORTS.items()}
    while leaves := [name for name, found in left.items() if not found & left.keys()]:
        for name in leaves:
            del left[name]
    assert left == {}


def test_the_tables_name_what_exists() -> None:
    """A renamed module must not slip out of its rule."""
    below = {name for importer in MAY for name in (f"bnfold.{importer}", *allowed(importer))}
    named = below.union(*ONLY.values())
    assert {name for name in named if name not in MODULES} == set()
    assert any("torch" in found for found in IMPORTS.values())  # the scan sees what it looks for


def loaded(*arguments: str) -> set[str]:
    """The top-level modules that `bnfold ARGUMENTS` has imported by its end."""
    code = (
        "import sys, json\nfrom bnfold.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: code = e.code\n"
        "print('\\n' + json.dumps([code or 0, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    code, names = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(names)


HEAVY = {"torch", "onnxruntime", "onnx", "onnx_ir", "onnxscript", "onnxsim", "numpy", "rich", "lightning", "sklearn"}


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    assert loaded(*filter(None, [verb]), "--help") & HEAVY == set()


def test_inspect_needs_neither_torch_nor_a_runtime(model_file: Path) -> None:
    assert loaded("inspect", str(model_file)) & {"torch", "onnxruntime", "onnxsim"} == set()


def test_an_audit_of_an_onnx_model_needs_no_torch(model_file: Path) -> None:
    assert loaded("audit", str(model_file), "--allow", "dead-gamma") & {"torch", "onnxsim", "onnxscript"} == set()


def test_optimize_verify_and_bench_need_no_torch(model_file: Path, tmp_path: Path) -> None:
    folded = str(tmp_path / "folded.onnx")
    light = {"torch", "onnxsim", "onnxscript"}
    assert loaded("optimize", str(model_file), "-o", folded) & light == set()
    assert loaded("verify", str(model_file), folded) & light == set()
    assert loaded("bench", str(model_file), folded, "--rounds", "3") & light == set()


def test_help_comes_at_once() -> None:
    """0.4 s is the limit for a person; CPU time, and the best of five, keep a busy machine out of it."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "bnfold", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.4


@pytest.mark.parametrize("first", ["import bnfold.verify.verdict", "from bnfold.verify import verify", "pass"])
def test_a_function_is_callable_whatever_was_imported_before(first: str, model_file: Path) -> None:
    """`bnfold.verify` is a package and a function; neither import order may hide the other."""
    code = f"{first}\nimport bnfold, sys\nprint(bnfold.verify(sys.argv[1], sys.argv[1], samples=1).status)"
    done = subprocess.run([sys.executable, "-c", code, model_file], capture_output=True, text=True, check=True)
    assert done.stdout == "pass\n"


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, bnfold; dir(bnfold); print([name for name in sys.modules if name.startswith('bnfold.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
