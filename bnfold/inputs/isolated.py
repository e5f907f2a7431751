"""Trial runs of a model at sizes that it may not take, in a child process: ONNX Runtime can crash on some of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

TIMEOUT_S = 60.0


class Prober:
    """Runs the model at `path` on the CPU at given sizes; starts a process when it is first asked, and anew if it dies.

    Use it as a context: at the end the process is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and self._child is not None:
            self._child.kill()  # it may be in a run that takes long
        self._end()

    def attempt(self, sizes: Mapping[str, int]) -> float | str:
        """Return the share of outputs that say something at these sizes, or why the model does not run there."""
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(dict(sizes)) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            found = json.loads(answer)
            return found if isinstance(found, str) else float(found)
        code = self._end()
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"ONNX Runtime ends its process there ({why})"

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bnfold.inputs.isolated_child", str(self.path)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return self._child

    def _end(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        try:
            child.communicate(timeout=TIMEOUT_S)  # closes its input, whether it still reads or not
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
        return child.returncode
