"""The queue by itself: rows stay with their request, limits hold, what is cancelled or late is not run."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.errors import ModelError
from bnfold.serve.batching import Batcher, Job, Limits
from bnfold.serve.core import Core
from bnfold.serve.errors import Refused
from bnfold.serve.model import open_model
from bnfold.serve.request import Request, Tensor
from bnfold.serve.settings import Settings
from bnfold.serve.stats import Stats
from bnfold.serve.workers import Workers
from tests.serve import zoo
from tests.serve.conftest import size, until

Arrays = dict[str, np.ndarray[Any, Any]]


class Machine:
    """y = 2x, held up by a gate, and a record of what it ran."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.ran: list[Arrays] = []

    def __call__(self, feeds: Arrays) -> Arrays:
        self.ran.append(feeds)
        assert self.gate.wait(30)
        if any(np.isnan(array).any() for array in feeds.values()):
            raise Refused("no NaN")
        return {"y": 2 * feeds["x"]}


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(4)
    yield workers
    workers.close()


def run(machine: Any, workers: Workers, limits: Limits, story: Callable[[Batcher], Coroutine[Any, Any, None]],
        finished: Callable[..., None] = lambda *_: None) -> Stats:  # fmt: skip
    async def go() -> Stats:
        stats = Stats()
        batcher = Batcher(machine, workers, limits, stats, finished)
        async with asyncio.timeout(60):
            await story(batcher)
            await batcher.drain()
        return stats

    return asyncio.run(go())


def rows(*values: float) -> Arrays:
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


def test_rows_are_never_swapped(workers: Workers) -> None:
    """16 clients with requests of many sizes: every row comes back to the one who sent it."""
    sizes: list[int] = []

    async def story(batcher: Batcher) -> None:
        async def client(number: int) -> None:
            rng = np.random.default_rng(number)
            for turn in range(size(60, 2000)):
                x = (number * 1e4 + turn + np.arange(rng.integers(1, 9)) / 16).astype(np.float32).reshape(-1, 1)
                wide = np.repeat(x, 2, axis=1) if rng.random() < 0.2 else x
                y = (await batcher.submit({"x": wide}, len(wide)).future)["y"]
                np.testing.assert_array_equal(y, 2 * wide)

        await asyncio.gather(*(client(k) for k in range(16)))

    def slow(feeds: Arrays) -> Arrays:
        time.sleep(0.0005)
        return {"y": 2 * feeds["x"]}

    stats = run(slow, workers, Limits(64, 1, 8, 0.0), story, lambda f, o, jobs, t: sizes.append(len(jobs)))
    assert stats.executions == len(sizes) and max(sizes) > 1, "nothing was joined"
    assert all(batch <= 8 for batch in stats.batches)


def test_a_batch_counts_rows_not_requests(workers: Workers) -> None:
    machine = Machine()
    machine.gate.clear()

    async def story(batcher: Batcher) -> None:
        jobs = [batcher.submit(rows(0), 1)]
        jobs += [batcher.submit(rows(*[k] * n), n) for k, n in enumerate((3, 3, 2, 1, 9))]
        machine.gate.set()
        await asyncio.gather(*(job.future for job in jobs))

    run(machine, workers, Limits(64, 1, 8), story)
    # The first was alone; then 3 + 3 + 2 fill a batch of 8, 1 goes next, and 9 is more than a batch and goes alone.
    assert [len(feeds["x"]) for feeds in machine.ran] == [1, 8, 1, 9]


def test_a_bad_request_fails_alone(workers: Workers) -> None:
    machine = Machine()
    machine.gate.clear()

    async def story(batcher: Batcher) -> None:
        jobs = [batcher.submit(rows(v), 1) for v in (0, 1, np.nan, 3)]
        machine.gate.set()
        answers = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
        assert [type(answer) for answer in answers] == [dict, dict, Refused, dict]
        assert answers[3]["y"] == 6  # type: ignore[index, call-overload]

    run(machine, workers, Limits(64, 1, 8), story)


def test_the_queue_is_bounded(workers: Workers) -> None:
    machine = Machine()
    machine.gate.clear()

    async def story(batcher: Batcher) -> None:
        jobs = [batcher.submit(rows(k), 1) for k in range(5)]  # one runs, four wait
        with pytest.raises(Refused, match="queue is full") as raised:
            batcher.submit(rows(9), 1)
        assert (raised.value.status, raised.value.reason) == (503, "queue-full")
        jobs[2].future.cancel()
        await asyncio.sleep(0)
        jobs.append(batcher.submit(rows(5), 1))  # its place is free again
        machine.gate.set()
        await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)

    run(machine, workers, Limits(4, 1, 1), story)
    assert [feeds["x"].item() for feeds in machine.ran] == [0, 1, 3, 4, 5]


def test_what_waits_too_long_is_refused_and_not_run(workers: Workers) -> None:
    machine = Machine()
    machine.gate.clear()

    async def story(batcher: Batcher) -> None:
        first, patient = batcher.submit(rows(0), 1), batcher.submit(rows(3), 1)
        late = [batcher.submit(rows(k), 1, timeout=wait) for k, wait in ((1, 0.1), (2, 0.05), (4, 0.15))]
        for job in late:
            with pytest.raises(Refused, match="timed out") as raised:
                await job.future
            assert (raised.value.status, raised.value.reason) == (503, "timeout")
        machine.gate.set()
        await asyncio.gather(first.future, patient.future)

    run(machine, workers, Limits(64, 1, 1), story)
    assert [feeds["x"].item() for feeds in machine.ran] == [0, 3]


def test_a_thread_goes_on_while_the_event_loop_is_held_up(workers: Workers) -> None:
    machine = Machine()

    async def story(batcher: Batcher) -> None:
        jobs = [batcher.submit(rows(k), 1) for k in range(5)]
        deadline = time.monotonic() + 30
        while len(machine.ran) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)  # and nothing else: the loop stands
        assert [feeds["x"].item() for feeds in machine.ran] == [0, 1, 2, 3, 4]
        assert [(await job.future)["y"].item() for job in jobs] == [0, 2, 4, 6, 8]
        assert batcher.busy == 0

    stats = run(machine, workers, Limits(64, 1, 1), story)
    assert (stats.executions, stats.compute.run.count) == (5, 5)


def test_what_comes_as_the_last_thread_leaves_is_run(workers: Workers) -> None:
    """The thread has found nothing more to do, and the event loop does not know it yet."""

    async def story(batcher: Batcher) -> None:
        first = batcher.submit(rows(1), 1)
        until(lambda: len(workers._idle) == 4)
        second = batcher.submit(rows(2), 1)
        assert second.queued and not first.future.done()
        assert (await second.future)["y"].item() == 4

    run(Machine(), workers, Limits(64, 1, 1), story)


def test_models_take_turns_at_a_thread() -> None:
    machine, workers = Machine(), Workers(1)
    machine.gate.clear()

    async def go() -> None:
        batchers = [Batcher(machine, workers, Limits(), Stats(), lambda *_: None) for _ in range(2)]
        jobs = [batcher.submit(rows(place), 1) for place, batcher in enumerate(batchers) for _ in range(4)]
        machine.gate.set()
        await asyncio.gather(*(job.future for job in jobs))

    asyncio.run(go())
    workers.close()
    assert [feeds["x"].item() for feeds in machine.ran] == [0, 1] * 4


def test_what_was_served_is_forgotten(workers: Workers) -> None:
    """Neither a timer nor a thread keeps a model, or a request, once it is drained."""

    async def go() -> None:
        machine = Machine()
        machine.gate.clear()
        batcher = Batcher(machine, workers, Limits(timeout=3600.0), Stats(), lambda *_: None)
        jobs = [batcher.submit(rows(k), 1) for k in range(3)]
        machine.gate.set()
        await asyncio.gather(*(job.future for job in jobs))
        await batcher.drain()
        seen = [weakref.ref(batcher), *(weakref.ref(job.future) for job in jobs)]
        del batcher, jobs
        deadline = time.monotonic() + 30
        while any(ref() is not None for ref in seen) and time.monotonic() < deadline:
            gc.collect()
            await asyncio.sleep(0.001)
        assert [ref() for ref in seen] == [None] * 4

    asyncio.run(go())


def test_of_1000_cancelled_hardly_any_is_run(workers: Workers) -> None:
    machine = Machine()
    machine.gate.clear()

    async def story(batcher: Batcher) -> None:
        jobs = [batcher.submit(rows(k), 1) for k in range(1000)]
        await asyncio.sleep(0.01)
        for job in jobs[1:]:
            job.future.cancel()
        machine.gate.set()
        await jobs[0].future

    run(machine, workers, Limits(2000, 1, 1), story)
    assert len(machine.ran) <= 10


def test_a_batch_waits_for_company_but_not_long(workers: Workers) -> None:
    machine = Machine()

    async def story(batcher: Batcher) -> None:
        one = batcher.submit(rows(1), 1)
        await asyncio.sleep(0.01)
        two = batcher.submit(rows(2), 1)
        await asyncio.gather(one.future, two.future)
        await batcher.submit(rows(3), 1).future  # alone: after the delay it goes all the same

    run(machine, workers, Limits(64, 1, 8, 0.1), story)
    assert [len(feeds["x"]) for feeds in machine.ran] == [2, 1]


def test_what_fills_no_batch_waits_while_others_go(workers: Workers) -> None:
    """A full batch goes at once; what is left of it, and what is of another shape, keeps its delay."""
    machine = Machine()

    async def story(batcher: Batcher) -> None:
        lone = batcher.submit({"x": np.ones((1, 2), np.float32)}, 1)
        jobs = [batcher.submit(rows(k), 1) for k in range(5)]
        await asyncio.gather(*(job.future for job in jobs[:4]))
        assert [len(feeds["x"]) for feeds in machine.ran] == [4] and batcher.depth == 2
        await asyncio.sleep(0.01)
        assert batcher.busy == 0  # and no thread is sent for meanwhile
        lone.future.cancel()
        jobs[4].future.cancel()

    run(machine, workers, Limits(64, 4, 4, 3600.0), story)


def test_drained_means_answered(workers: Workers) -> None:
    machine = Machine()
    machine.gate.clear()

    async def story(batcher: Batcher) -> None:
        jobs = [batcher.submit(rows(k), 1) for k in range(10)]
        batcher.close()
        with pytest.raises(Refused, match="unloaded"):
            batcher.submit(rows(11), 1)
        machine.gate.set()
        await batcher.drain()
        assert all(job.future.done() for job in jobs)

    run(machine, workers, Limits(64, 2, 4, 0.5), story)


def test_a_bug_in_the_run_reaches_its_request(workers: Workers) -> None:
    def broken(feeds: Arrays) -> Arrays:
        raise ZeroDivisionError

    async def story(batcher: Batcher) -> None:
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(rows(1), 1).future

    run(broken, workers, Limits(), story)


def test_a_model_that_loses_rows_is_not_answered_from_a_batch(workers: Workers) -> None:
    machine = Machine()
    machine.gate.clear()

    def short(feeds: Arrays) -> Arrays:
        machine(feeds)
        return {"y": feeds["x"][:1]}

    async def story(batcher: Batcher) -> None:
        jobs = [batcher.submit(rows(k), 1) for k in range(3)]
        machine.gate.set()
        answers = await asyncio.gather(*(job.future for job in jobs))
        assert [answer["y"].item() for answer in answers] == [0, 1, 2]  # each was run again, alone

    run(short, workers, Limits(64, 1, 8), story)


def test_a_model_that_mixes_rows_is_not_batched(tmp_path: Path) -> None:
    path = zoo.write(zoo.mixer(), tmp_path / "mixer")
    with pytest.raises(ModelError, match="mixes rows; serve it with --max-batch 1"):
        open_model("mixer", "1", path, Settings(tmp_path, max_batch=8))
    assert open_model("mixer", "1", path, Settings(tmp_path)).rows == 1
    assert open_model("mixer", "1", path, Settings(tmp_path, max_batch=1)).rows == 1


@pytest.mark.parametrize(("name", "expected"), [("double", 8), ("cnn", 8), ("pair", 8), ("scalar", 1), ("slow", 1)])
def test_what_has_rows_is_batched(tmp_path: Path, name: str, expected: int) -> None:
    path = zoo.write(zoo.MODELS[name](), tmp_path / name)
    assert open_model(name, "1", path, Settings(tmp_path, max_batch=8)).rows == expected


def test_batched_answers_equal_single_ones(tmp_path: Path) -> None:
    """The whole way, on a real session: 16 clients, mixed sizes, every answer that of its own rows."""
    zoo.repository(tmp_path, "double", "pair")
    settings = Settings(tmp_path, max_batch=16, concurrency=2, threads=1, queue=1000)

    async def client(core: Core, number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(size(40, 1000)):
            x = rng.normal(size=(rng.integers(1, 7), 3)).astype(np.float32)
            answer = await core.infer(Request("double", "", (Tensor("x", "FP32", x),)))
            np.testing.assert_array_equal(answer.outputs["y"], 2 * x)
            a, b = rng.normal(size=(2, rng.integers(1, 4), rng.integers(1, 3))).astype(np.float32)
            request = Request("pair", "1", (Tensor("b", "FP32", b), Tensor("a", "FP32", a)), ("d",))
            np.testing.assert_array_equal((await core.infer(request)).outputs["d"], a - b)

    async def go() -> None:
        core = Core(settings)
        await core.start()
        await asyncio.gather(*(client(core, k) for k in range(16)))
        stats = core.versions("double").stats["1"]
        assert stats.executions < stats.success.count, "nothing was joined"
        await core.close()

    asyncio.run(go())


def test_a_job_is_its_own(workers: Workers) -> None:
    """Two equal requests are two."""

    async def story(batcher: Batcher) -> None:
        jobs = [batcher.submit(rows(1), 1) for _ in range(3)]
        assert len({id(job) for job in jobs}) == 3 and isinstance(jobs[0], Job)
        assert [(await job.future)["y"].item() for job in jobs] == [2, 2, 2]

    run(Machine(), workers, Limits(), story)
