"""The threads that run models: in order, ended when asked, and at rest with nothing in their hands."""

from __future__ import annotations

import gc
import threading
import weakref

from bnfold.serve.workers import Workers
from tests.serve.conftest import until


def test_tasks_are_done_in_order_and_before_the_end() -> None:
    before = set(threading.enumerate())
    workers, done, over = Workers(1), list[int](), threading.Event()
    for number in range(100):
        workers.submit(lambda number=number: done.append(number))
    workers.close()
    workers.submit(over.set)  # nobody is there to do it
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()
    assert done == list(range(100)) and not over.is_set() and workers.wanted


def test_each_thread_does_a_task_of_its_own() -> None:
    """Three tasks that wait for each other take three threads; a fourth waits for one of them."""
    workers, meeting, fourth = Workers(3), threading.Barrier(4), threading.Event()
    for _ in range(3):
        workers.submit(lambda: meeting.wait(30))
    until(lambda: meeting.n_waiting == 3)
    workers.submit(fourth.set)
    assert workers.wanted and not fourth.is_set()
    meeting.wait(30)
    assert fourth.wait(30)
    workers.close()


def test_a_thread_at_rest_holds_nothing() -> None:
    """What a request brought must go, though the next may be long in coming."""

    class Large:
        def __call__(self) -> None:
            pass

    workers = Workers(2)
    for late in (False, True):  # as the threads start, and once all rest
        task = Large()
        seen = weakref.ref(task)
        workers.submit(task)
        del task
        until(lambda: len(workers._idle) == 2)
        gc.collect()
        assert seen() is None, late
    workers.close()
