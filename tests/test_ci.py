"""What CI uses: the composite action, its steps run as a runner runs them, and the documents that users paste from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from tests import nets
from tests.conftest import REPOSITORY, conv_bn

yaml = pytest.importorskip("yaml")

ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")

# A Python whose environments hold this bnfold; what pip would install is written down. Like a console script, it looks
# for no modules where the job runs (-P): the environment's own folder is called bnfold too.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
cat > "$3/bin/python" <<'END'
#!/bin/sh
if [ "$2" = pip ]; then echo "$@" >> "$RUNNER_TEMP/pip.log"; exit 0; fi
exec {python} "$@"
END
printf '#!/bin/sh\\nexec {python} -P -m bnfold "$@"\\n' > "$3/bin/bnfold"
chmod +x "$3/bin/python" "$3/bin/bnfold"
"""


@dataclass
class Runner:
    """As much of a GitHub runner as a composite action sees."""

    folder: Path
    inputs: dict[str, str]
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    summary: str = ""
    log: str = ""
    code: int = 0

    def value(self, expression: str) -> str:
        """An expression of the kinds that the action uses: a name, or a name compared with a text."""
        name, equals, text = expression.partition(" == ")
        if equals:
            return str(self.value(name) == text.strip("'")).lower()
        parts = name.split(".")
        if parts[0] == "inputs":
            return self.inputs[parts[1]]
        if parts[0] == "steps":
            assert parts[2] == "outputs"
            return self.outputs.get(parts[1], {}).get(parts[3], "")
        return {"github.action_path": str(REPOSITORY)}[name]

    def filled(self, text: str) -> str:
        return EXPRESSION.sub(lambda found: self.value(found[1]), text)

    def run(self) -> Runner:
        """Run the steps in order until one fails; those of other actions are left out."""
        for number, step in enumerate(STEPS):
            if "run" in step and self.filled(step.get("if", "true")) == "true" and self.code == 0:
                self.step(step, self.folder / f"step{number}")
        return self

    def step(self, step: dict[str, Any], files: Path) -> None:
        files.mkdir()
        script, output, summary = files / "script.sh", files / "output", files / "summary"
        script.write_text(step["run"], encoding="utf-8")
        output.touch()
        summary.touch()
        env = {
            **os.environ, "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary),
            "RUNNER_TEMP": str(self.folder), **{key: self.filled(text) for key, text in step["env"].items()},
        }  # fmt: skip
        assert step["shell"] == "bash"
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        done = subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, check=False)
        self.code, self.log = done.returncode, self.log + done.stdout + done.stderr
        lines = (line.split("=", 1) for line in output.read_text(encoding="utf-8").splitlines())
        self.outputs[step.get("id", files.name)] = dict(lines)
        self.summary += summary.read_text(encoding="utf-8")

    def said(self, name: str) -> str:
        """An output of the action."""
        return self.filled(ACTION["outputs"][name]["value"])


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A runner with a model, its fold, a faulty fold and one that is zero whatever the input; the action's defaults."""
    onnx.save(conv_bn(), tmp_path / "model.onnx")
    onnx.save(nets.plain(0), tmp_path / "plain.onnx")
    onnx.save(nets.fold(nets.plain(0), fault="a channel + 0.1 %"), tmp_path / "faulty.onnx")
    zero = conv_bn()
    zero.graph.node[-1].CopyFrom(helper.make_node("Sub", ["b1", "b1"], ["y"]))
    onnx.save(zero, tmp_path / "zero.onnx")
    python = tmp_path / "python with space"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    inputs = {name: str(given.get("default", "")) for name, given in ACTION["inputs"].items()}
    return Runner(tmp_path, {**inputs, "python": str(python), "options": "--samples 2"})


def test_it_folds_verifies_and_reports(runner: Runner) -> None:
    runner.inputs.update(model="model.onnx", options="--samples 2\n  --seed 3\n")
    runner.run()
    assert runner.code == 0, runner.log
    assert (runner.said("verdict"), runner.said("exit-code")) == ("pass", "0")
    assert 0 <= float(runner.said("ratio")) <= 1 and (runner.folder / runner.said("sarif")).is_file()
    assert (runner.folder / "folded.onnx").is_file()
    reports = {path.suffix for path in (runner.folder / "bnfold-reports").iterdir()}
    assert reports == {".json", ".xml", ".sarif", ".md", ".html"}
    found = json.loads((runner.folder / "bnfold-reports" / "verdict.json").read_text())
    assert (found["settings"]["samples"], found["settings"]["seed"]) == (2, 3)
    assert runner.summary == (runner.folder / "bnfold-reports" / "verdict.md").read_text(encoding="utf-8")
    assert (runner.folder / "pip.log").read_text().split()[-1] == f"{REPOSITORY}[report]"


@pytest.mark.parametrize(
    ("inputs", "verdict", "code"),
    [
        ({"model": "plain.onnx", "candidate": "faulty.onnx"}, "mismatch", "1"),
        ({"model": "zero.onnx", "candidate": "zero.onnx"}, "inconclusive", "3"),
        ({"model": "nowhere.onnx"}, "error", "4"),
        ({"model": "$(touch pwned)", "candidate": "`touch pwned`"}, "error", "4"),
    ],
)
def test_what_is_no_pass_fails_the_job(runner: Runner, inputs: dict[str, str], verdict: str, code: str) -> None:
    runner.inputs.update(inputs)
    stale = runner.folder / "bnfold-reports" / "verdict.json"
    stale.parent.mkdir()
    stale.write_text('{"status": "pass", "exit_code": 0, "ratio": 0.1}')
    runner.run()
    assert (runner.code, runner.said("exit-code"), runner.said("verdict")) == (int(code), code, verdict), runner.log
    assert "✅" not in runner.summary.partition("\n")[0] and runner.summary
    assert "::error title=bnfold::" in runner.log and not (runner.folder / "pwned").exists()


def test_the_job_may_go_on(runner: Runner) -> None:
    runner.inputs.update(model="plain.onnx", candidate="faulty.onnx", fail="false")
    assert runner.run().code == 0 and runner.said("exit-code") == "1"


def test_a_regression_is_told_apart(runner: Runner) -> None:
    cells = [f"output 'y' on cpu, {level}" for level in ("off", "deployed")]
    settings = {"inputs": "generated", "samples": 2, "seed": 0, "dims": {}}
    ratios = dict.fromkeys(cells, 0.0)
    content = {"schema": "bnfold.baseline/1", "settings": settings, "onnxruntime": "", "ratios": ratios}
    (runner.folder / "b.json").write_text(json.dumps(content))
    onnx.save(nets.separable(0), runner.folder / "separable.onnx")
    onnx.save(nets.fold(nets.separable(0)), runner.folder / "candidate.onnx")
    runner.inputs.update(model="separable.onnx", candidate="candidate.onnx", baseline="b.json")
    runner.inputs["options"] += " --baseline-factor 1"
    runner.run()
    assert (runner.code, runner.said("verdict")) == (1, "regression"), runner.log


def test_what_the_action_refers_to_exists() -> None:
    text = (REPOSITORY / "action.yml").read_text(encoding="utf-8")
    ids = {step["id"]: step for step in STEPS if "id" in step}
    for expression in EXPRESSION.findall(text):
        kind, name, *rest = expression.partition(" ")[0].split(".")
        if kind == "inputs":
            assert name in ACTION["inputs"]
        elif kind == "steps":
            assert f"{rest[1]}=" in ids[name]["run"]
    used = {name for name in ACTION["inputs"] if f"inputs.{name}" in text}
    assert used == set(ACTION["inputs"])
    for step in STEPS:
        assert not EXPRESSION.search(step.get("run", "")), "an input in a script could be a command"
        assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def blocks(language: str) -> list[str]:
    text = (REPOSITORY / "docs" / "ci.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_workflows_in_the_docs_fit_the_action() -> None:
    steps = []
    for block in blocks("yaml"):
        workflow = yaml.safe_load(block)
        for job in workflow.get("jobs", {}).values():
            steps += job["steps"]
            ids = {step["id"]: step for step in job["steps"] if "id" in step}
            for name, output in re.findall(r"steps\.([\w-]+)\.outputs\.([\w-]+)", block):
                assert ids[name]["uses"] == "OWNER/bnfold@TAG" and output in ACTION["outputs"]
    ours = [step["with"] for step in steps if step.get("uses") == "OWNER/bnfold@TAG"]
    assert len(ours) == 2
    required = {name for name, given in ACTION["inputs"].items() if given.get("required")}
    assert all(required <= set(given) <= set(ACTION["inputs"]) for given in ours)


def test_the_commands_in_the_docs_run(tmp_path: Path) -> None:
    onnx.save(conv_bn(), tmp_path / "model.onnx")
    lines = [line for block in blocks("yaml") for line in re.findall(r"- (bnfold .*)", block)]
    lines += [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        words = line.partition("#")[0].split()
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
