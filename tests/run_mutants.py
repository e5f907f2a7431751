"""Let the tests that watch the fold notice every mutant: `python -m tests.run_mutants [--jobs N] [TEXT …]`.

The tests are collected once, and run once to learn which lines each of them reaches. Then each mutant lives in a fork
of that process, where the code of the changed functions is exchanged and the tests that reach it run, the quick ones
first, until one fails. Prints the mutants that none noticed, and exits with 1 if there are any. TEXT restricts the run
to mutants whose name holds one of them.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

from tests.mutants import FORMULAS, GUARDED, PACKAGE, Mutant, mutants

WATCH = (
    "peer_bugs", "contract", "legacy", "derived", "affine", "io", "malformed", "padding", "fold", "fused", "laws",
    "unknown", "random_graphs", "constants", "shapes", "frozen", "hostile", "merge",
)  # fmt: skip
SETTINGS = {"BNFOLD_RANDOM_GRAPHS": "100", "BNFOLD_LAW_EXAMPLES": "60"}
SECONDS = 300


def apply(mutant: Mutant) -> None:
    """Exchange the code of the functions that the mutant changes, closures that tables hold among them."""
    path = PACKAGE / mutant.file
    before, after = (compile(text, path, "exec") for text in (path.read_bytes(), mutant.source()))
    fresh = dict(_pairs(before, after))
    changed = 0
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__ in fresh:
            changed += thing.__code__ != fresh[thing.__code__]
            thing.__code__ = fresh[thing.__code__]
    assert changed, f"{mutant} changes no function"


def _pairs(before: CodeType, after: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Pair each code object of a module with the one that takes its place: that of its name on its line."""
    yield before, after
    old, new = (_inner(code) for code in (before, after))
    for key in old.keys() & new.keys():
        for pair in zip(old[key], new[key], strict=False):
            yield from _pairs(*pair)


def _inner(code: CodeType) -> dict[tuple[str, int], list[CodeType]]:
    found: dict[tuple[str, int], list[CodeType]] = defaultdict(list)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found[constant.co_qualname, constant.co_firstlineno].append(constant)
    return found


@dataclass(frozen=True)
class Reach:
    """How long one test takes, and which lines of which file of the package it runs."""

    seconds: float
    lines: frozenset[tuple[str, int]]


class Forks:
    """A pytest plugin: instead of running the collected tests once, run them for each mutant in a fork."""

    def __init__(self, chosen: Iterable[Mutant], jobs: int, say: Callable[[str], None]) -> None:
        self.left, self.jobs, self.say = list(chosen)[::-1], jobs, say
        self.running: dict[int, tuple[Mutant, float]] = {}
        self.outcomes: Counter[str] = Counter()
        self.survivors: list[Mutant] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise SystemExit("the tests could not be collected")
        session.items[:] = _telling(session.items)
        reached = _in_fork(lambda: _reached(session))
        if len(reached) < len(session.items):
            raise SystemExit(f"the tests fail without a mutant: {session.items[len(reached)].nodeid}")
        self.say(f"{len(reached)} tests in {sum(reach.seconds for reach in reached):.0f} s")
        while self.left or self.running:
            while self.left and len(self.running) < self.jobs:
                mutant = self.left.pop()
                touched = {(mutant.file, line) for line in mutant.lines}
                near = [index for index, reach in enumerate(reached) if not touched.isdisjoint(reach.lines)]
                items = [session.items[index] for index in sorted(near, key=lambda index: reached[index].seconds)]
                pid = os.fork()
                if not pid:
                    _live(session, items, mutant)
                self.running[pid] = mutant, time.monotonic()
            self._reap()
        return True

    def _reap(self) -> None:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            mutant, start = self.running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            outcome = {0: "survived", 1: "noticed"}.get(code, "hung" if code == -signal.SIGKILL else "crashed")
            self.outcomes[outcome] += 1
            if outcome == "survived":
                self.survivors.append(mutant)
            self.say(f"{outcome:9}{time.monotonic() - start:6.0f} s  {mutant}")
            return
        for pid, (_, start) in self.running.items():
            if time.monotonic() - start > SECONDS:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _telling(items: list[pytest.Item]) -> list[pytest.Item]:
    """Leave out what says the same again, such as the cases in float32 that are there in float64 too.

    What starts other processes says nothing: they run the code as it is in the files.
    """
    names = {item.nodeid for item in items}
    return [
        item for item in items
        if not item.name.startswith(("test_stable", "test_contract[", "test_bytes_do_not_depend_on_the_process"))
        and item.nodeid.replace("(float)]", "(double)]") not in names - {item.nodeid}
    ]  # fmt: skip


def _in_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns, done in a fork, so that it leaves nothing behind here."""
    with tempfile.TemporaryFile() as file:
        pid = os.fork()
        if not pid:
            _silence()
            try:
                pickle.dump(work(), file)
                file.flush()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        file.seek(0)
        return pickle.load(file)


def _reached(session: pytest.Session) -> list[Reach]:
    """Run the tests and return what each reaches, up to the first that fails."""
    files = {str(PACKAGE / file): file for file in (*GUARDED, *(row[0] for row in FORMULAS))}
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        file = files.get(frame.f_code.co_filename)
        if file is None:
            return None
        lines.add((file, frame.f_lineno))
        return trace

    found = []
    for item in session.items:
        assert isinstance(item, pytest.Function)
        for thing in vars(item.module).values():  # what one test leaves for the next, each would have to compute
            if hasattr(thing, "cache_clear"):
                thing.cache_clear()
        lines.clear()
        start = time.perf_counter()
        sys.settrace(trace)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        sys.settrace(None)
        if session.testsfailed:
            break
        found.append(Reach(time.perf_counter() - start, frozenset(lines)))
    return found


def _live(session: pytest.Session, items: list[pytest.Item], mutant: Mutant) -> None:
    """Run tests in this fork until one fails, and end it."""
    _silence()
    code = 2  # a mutant that can't be applied is not one that was noticed
    try:
        apply(mutant)
        code = 1
        for item in items:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if session.testsfailed:
                break
        else:
            code = 0
    finally:
        os._exit(code)


def _silence() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def main() -> int:
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument("text", nargs="*")
    chosen = options.parse_args()
    os.environ.update(SETTINGS)
    found = [mutant for mutant in mutants() if not chosen.text or any(text in str(mutant) for text in chosen.text)]
    screen = os.fdopen(os.dup(1), "w")

    def say(line: str) -> None:
        print(line, file=screen, flush=True)

    forks = Forks(found, chosen.jobs, say)
    files = [f"tests/test_{name}.py" for name in WATCH]
    # The package is a plugin too, whose assertions pytest rewrites: its functions would not be found again.
    plain = ["--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=no"]
    pytest.main(["-q", "-x", *plain, *files], plugins=[forks])
    say(f"\n{len(found)} mutants: {', '.join(f'{count} {outcome}' for outcome, count in forks.outcomes.items())}")
    for mutant in forks.survivors:
        say(f"survived  {mutant}")
    return 1 if forks.survivors or sum(forks.outcomes.values()) < len(found) else 0


if __name__ == "__main__":
    sys.exit(main())
