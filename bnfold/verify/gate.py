"""The verification itself, from the cheapest check to the dearest: interface, certificate, layers, outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.graph import total_bytes
from bnfold.inputs import feeds
from bnfold.inputs.feeds import Sample
from bnfold.io import Source, checked
from bnfold.providers import DETERMINISM
from bnfold.verify import abreast, certificate, compare, contract
from bnfold.verify.judgement import judge
from bnfold.verify.kernels.base import Unsupported, is_float
from bnfold.verify.levels import Level, chosen
from bnfold.verify.local import Local
from bnfold.verify.options import LOCAL_KINDS, Options
from bnfold.verify.precision import not_a_number
from bnfold.verify.sessions import Sessions
from bnfold.verify.sides import Exact, OnnxReference, Outputs, Reference, Run
from bnfold.verify.tally import CellTally, Constancy, Coverage
from bnfold.verify.trial import Expected, Trial, altered, jittered, perturb
from bnfold.verify.verdict import Finding, Status, Verdict, inconclusive

Progress = Callable[[str], None]

# Further runs before a mismatch is called, unless the error is hopelessly large.
FIRM_RUNS = 8
HOPELESS = 1e3
# Reference outputs are kept for a block of samples, so that one set of perturbed weights exists at a time.
BLOCK_BYTES = 1 << 28


@dataclass
class Gate:
    """One verification in progress: what was found speaks against the candidate, or against the verification."""

    reference: Any
    candidate: Source
    options: Options = field(default_factory=Options)
    progress: Progress | None = None
    problems: list[Finding] = field(default_factory=list)
    doubts: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.changed = checked(self.candidate)
        self.proof: Mapping[str, Any] = {}
        self.tallies: dict[tuple[str, str, str], CellTally] = {}
        self.coverage = Coverage()
        self.local: Local | None = None
        self.used = 0
        self.size = total_bytes(self.changed)
        self.sessions = Sessions(self.candidate, self.options, self.size, self.doubts)

    def run(self) -> Verdict:
        """Go through the checks; a mismatch ends it, unless all are asked for."""
        with abreast.one_core_products(self.size):
            return self.checked()

    def checked(self) -> Verdict:
        side = self.prepared()
        if side is None or (self.problems and not self.options.keep_going):
            return self.verdict(side)
        try:
            exact = side.exact()
            self.measured(side, exact)
        except Unsupported as missing:
            self.doubts.append(inconclusive(f"no float64 evaluation of: {missing}"))
        except runtime.RunError as error:
            self.doubts.append(inconclusive(f"the original itself does not run on these inputs: {error}"))
        return self.verdict(side)

    def prepared(self) -> Reference | None:
        """Compare the interfaces and check the certificate; None where the candidate can't be called alike."""
        from bnfold.verify.torchside import as_reference

        module = as_reference(self.reference, self.changed)
        if module is not None:
            self.model = self.changed
            return module
        self.model = checked(self.reference)
        self.say("comparing the interfaces")
        broken, noted = contract.differences(self.model, self.changed)
        self.problems += [Finding("interface", text) for text in broken]
        self.warnings += noted
        if broken:
            return None
        constants = contract.overridable(self.model)
        if constants:
            self.warnings.append(f"{constants} initializers that are inputs as well were taken as constants")
        with self.timed("certificate", "checking the certificate"):
            found = certificate.check(self.model, self.changed, self.options.expect_folds)
        self.proof = found.to_dict()
        self.problems += found.problems
        self.doubts += found.doubts
        self.warnings += found.warnings
        assert found.windows is not None
        self.doubts += map(inconclusive, not_a_number(self.model))
        evaluated = found.windows.models[0]
        side = OnnxReference(evaluated, self.reference)
        self.local = Local(found.windows, self.options.providers, side.unit, refuted=found.refuted)
        return side

    def measured(self, side: Reference, exact: Exact) -> None:
        """Evaluate, run and compare every sample."""
        with self.timed("sessions", "opening sessions"):
            for provider in self.options.providers:
                self.sessions.reference(side, provider, gate=True)
                for level in chosen(self.options.levels, provider):
                    self.sessions.candidate(provider, level)
        drawn = self.draw(self.sessions.reference(side, self.options.providers[0], gate=True))
        self.sessions.release()
        known = self.local_checks(side, exact, drawn)
        if self.problems and not self.options.keep_going:
            return
        constancy = {name: Constancy() for name in side.outputs}
        for block in self.blocks(side, exact, drawn, known):
            for expected in block:
                for name in side.outputs:
                    constancy[name].add(expected.y[name], expected.sensitivity(name))
            for provider in self.options.providers:
                self.compared(side, block, provider)
            self.used += len(block)
            found_any = self.problems or any(tally.problems for tally in self.tallies.values())
            if found_any and not self.options.keep_going:
                break
        else:
            self.probe(exact, drawn[0], constancy)
        if self.local is not None and not self.proof["applies"]:
            self.doubts += map(inconclusive, self.local.unreached(self.coverage.ran))
        found = judge(self.model, side, self.tallies.values(), constancy, self.coverage)
        self.doubts += found.doubts
        self.warnings += found.warnings

    def local_checks(self, side: Reference, exact: Exact, drawn: Sequence[Sample]) -> dict[int, Outputs]:
        """V2 on the first sample of each kind; return those samples' y, which are known from then on."""
        known: dict[int, Outputs] = {}
        if self.local is None or not self.local.layers:
            return known
        first = {sample.kind: n for n, sample in reversed(list(enumerate(drawn)))}
        picked = [first[kind] for kind in LOCAL_KINDS if kind in first] or list(range(len(drawn)))
        picked = picked[: self.options.local_samples]
        with self.timed("layers", "checking layer by layer"):
            for index in picked:
                known[index] = self.local.run(exact, drawn[index], self.coverage)  # type: ignore[arg-type]
            faulty = self.local.faulty([drawn[index] for index in picked])
        self.problems += [Finding("layer", layer.complaint, layer.label) for layer in faulty]
        return known

    def compared(self, side: Reference, block: Sequence[Expected], provider: str) -> None:
        """Hold the candidate at each level of a provider against a block of samples."""
        trials: dict[tuple[bool, float], list[Trial]] = {}
        for level in chosen(self.options.levels, provider):
            unit = max(side.unit, level.unit or 0.0)
            key = (level.gate, unit)
            if key not in trials:
                with self.timed("reference runs", f"running the original on {provider}"):
                    trials[key] = self.tried(side, block, provider, level)
            with self.timed("candidate runs", f"running the candidate on {provider}, {level.name}"):
                for trial, found in zip(trials[key], self.answers(trials[key], provider, level), strict=True):
                    for name, c in (found or {}).items():
                        self.held(side, trial, name, c, provider, level, unit)

    def tried(self, side: Reference, block: Sequence[Expected], provider: str, level: Level) -> list[Trial]:
        """Run the original on a block. Nobody holds its session after that, for two may not fit into memory."""
        run, unit = self.sessions.reference(side, provider, gate=level.gate), max(side.unit, level.unit or 0.0)
        return [Trial(e, run(e.sample.feeds), unit / side.unit) for e in block]

    def answers(self, trials: Sequence[Trial], provider: str, level: Level) -> list[Outputs | None]:
        """Run the candidate on a block; None where it fails, for where the original runs, so must the candidate."""
        run, found = self.sessions.candidate(provider, level), list[Outputs | None]()
        for trial in trials:
            try:
                found.append(run(trial.sample.feeds))
            except runtime.RunError as error:
                text = f"the candidate fails on {provider}, {level.name} ({trial.sample}): {error}"
                self.problems.append(Finding("execution", text, None, None, provider, level.name))
                found.append(None)
        return found

    def held(
        self, side: Reference, trial: Trial, name: str, c: Array, provider: str, level: Level, unit: float
    ) -> None:
        """Measure one output of one sample, and firmly where it seems to differ; then count it."""
        m = trial.measure(name, c)
        if 1.0 < m.ratio < HOPELESS and not trial.firm:
            self.firm(side, trial, provider, level)
            m = trial.measure(name, c)
        tally = self.tallies.setdefault((provider, level.name, name), CellTally(provider, level.name, name))
        y, o = trial.y[name], trial.o[name]
        known = (compare.scores(o.shape) or 0) if is_float(o) and y.shape == c.shape else 0
        classes = {count: compare.best(y, c, m.limit, count) for count in compare.BEST if count < known}
        tally.add(m, str(trial.sample), unit, classes)
        outside = compare.beyond(y, c, self.options.rtol, self.options.atol)
        if outside:
            tally.problem("limit", f"{outside} values beyond the given rtol and atol ({trial.sample})")

    def draw(self, plain: Run) -> list[Sample]:
        """Return the user's inputs or generated ones whose sizes the original accepts."""
        if self.options.inputs is not None:
            return feeds.given(self.model, self.options.inputs, self.options.drawn)

        attempt = partial(runtime.attempt, plain)
        o = self.options
        return feeds.generated(self.model, seed=o.seed, samples=o.drawn, dims=o.dims, attempt=attempt)

    def blocks(
        self, side: Reference, exact: Exact, drawn: Sequence[Sample], known: Mapping[int, Outputs]
    ) -> Iterator[list[Expected]]:
        """Yield samples with y and with what perturbed weights change, in blocks of bounded size."""
        block: list[Expected] = []

        def evaluated(indices: Sequence[int]) -> list[Expected]:
            new = [index for index in indices if index not in known]
            found = dict(zip(new, exact.runs([drawn[index].feeds for index in new], self.coverage), strict=True))
            return [Expected(drawn[index], known.get(index) or found[index]) for index in indices]

        done = 0
        while done < len(drawn):
            workers, together = (count(exact.peak, self.size) for count in (abreast.room, abreast.together))
            following = range(done, min(done + workers * together, len(drawn)))
            with self.timed("float64", f"evaluating in float64, {following.stop} of {len(drawn)}"):
                for some in abreast.each(evaluated, abreast.parts(following, together), workers):
                    block += some
            done = following.stop
            if sum(e.nbytes for e in block) > BLOCK_BYTES or done == len(drawn):
                self.perturb(side, abreast.parts(block, together), workers)
                yield block
                block = []

    def perturb(self, side: Reference, parts: Sequence[Sequence[Expected]], workers: int) -> None:
        """Evaluate the parts of a block with perturbed weights, one set of them at a time."""
        for run in range(self.options.noise_runs):
            with self.timed("noise", f"perturbing the weights, {run + 1} of {self.options.noise_runs}"):
                noisy = side.perturbed(self.options.seed * 1000 + run)
                abreast.each(partial(perturb, noisy=noisy), parts, workers)

    def probe(self, exact: Exact, sample: Sample, constancy: Mapping[str, Constancy]) -> None:
        """Where no two samples have one shape, evaluate another input: does the output depend on it at all?"""
        if all(seen.compared for seen in constancy.values()):
            return
        other = exact.run({name: altered(array) for name, array in sample.feeds.items()})
        for name, seen in constancy.items():
            seen.add(other[name], 0.0)

    def firm(self, side: Reference, trial: Trial, provider: str, level: Level) -> None:
        """Measure the noise again and again before calling a mismatch: one run of few values may be quiet by luck."""
        self.say("measuring the noise again")
        rng = np.random.default_rng([self.options.seed, 1])
        exact, plain = side.exact(), self.sessions.reference(side, provider, gate=level.gate)
        for run in range(FIRM_RUNS):
            trial.perturb(side.perturbed(self.options.seed * 1000 + 100 + run))
            nearby = {k: jittered(v, side.unit, rng) for k, v in trial.sample.feeds.items()}
            trial.add(exact.run(nearby), plain(nearby))
        trial.firm = True

    def verdict(self, side: Reference | None) -> Verdict:
        """Weigh: a mismatch outweighs a doubt, and a pass needs cells and no doubt."""
        cells = tuple(tally.cell() for tally in self.tallies.values() if tally.samples)
        problems = [*self.problems, *(p for tally in self.tallies.values() for p in tally.problems.values())]
        if not cells and not problems and not self.doubts:
            self.doubts.append(inconclusive("nothing was compared"))
        status: Status = "mismatch" if problems else "inconclusive" if self.doubts else "pass"
        kept = {k: v for k, v in asdict(replace(self.options, inputs=None)).items() if k != "inputs"}
        settings = {
            **kept, "providers": list(self.options.providers), "samples": self.used,
            "dims": dict(self.options.dims or {}), "unit_roundoff": None if side is None else side.unit,
            "onnxruntime": runtime.version(), "inputs": "generated" if self.options.inputs is None else "given",
            "determinism": DETERMINISM, "placement": self.sessions.placed,
        }  # fmt: skip
        return Verdict(
            status, cells, tuple(dict.fromkeys([*problems, *self.doubts])), tuple(dict.fromkeys(self.warnings)),
            self.coverage.to_dict(self.used) if side is not None and self.used else {}, self.proof, settings,
            () if self.local is None else tuple(layer.to_dict() for layer in self.local.reported()),
            self.seconds,
        )  # fmt: skip

    @contextmanager
    def timed(self, step: str, saying: str) -> Iterator[None]:
        """Say what is being done and add its time to its step's."""
        self.say(saying)
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

    def say(self, text: str) -> None:
        if self.progress is not None:
            self.progress(text)
