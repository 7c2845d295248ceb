"""An exception at any call of the engine leaves no caller without an answer, and no thread behind.

The places are found from the code itself: every line of the engine that calls something, and that runs while a host
answers a few calls. One place after the other then raises, once.
"""

from __future__ import annotations

import ast
import functools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Any

import batchery.worker.engine
import numpy as np
import pytest
from batchery.configs import WorkerOptions
from batchery.worker.engine import Host

from batchery import BatchTask, JobRejected, PadBatcher
from tests.support.fakes import DEADLINE_S, engine_threads, wait_until_gone

Place = tuple[str, int]

FOLDER = Path(batchery.worker.engine.__file__).parent
CALLS = 6

#: Seconds after which a call counts as one that is never answered.
PATIENCE_S = 3.0


@functools.cache
def calling_lines(file: str) -> frozenset[int]:
    """The lines of a file on which something is called."""
    tree = ast.parse(Path(file).read_text())
    return frozenset(node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call))


class Watched(BatchTask):
    """Preprocesses on other threads, and pads, so that all of the engine's steps are taken."""

    batcher = PadBatcher(unpad=0)
    max_batch_size = 2

    def preprocess(self, length: int) -> Any:
        return np.ones(length)

    def predict(self, batch: Any) -> Any:
        return batch * 2


class Tracer:
    """Calls `at(place)` before each line of the engine that calls something, on the engine's threads."""

    def __init__(self, at: Callable[[Place], None]) -> None:
        self._at = at

    def __enter__(self) -> None:
        threading.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        threading.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        ours = Path(frame.f_code.co_filename).parent == FOLDER
        return self._line if ours and threading.current_thread().name.startswith("batchery-") else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and line in calling_lines(file):
            self._at((file, line))
        return self._line


def answers(at: Callable[[Place], None]) -> list[Future[Any]]:
    """Send calls to a host while `at` is called at each place; return their futures, all done, once it has stopped."""
    futures: list[Future[Any]] = []
    with Tracer(at), Host(Watched(), options=WorkerOptions(drain_timeout_s=0.3)) as host:
        for length in range(CALLS):
            try:
                futures.append(host.submit(length))
            except JobRejected:  # the engine has died of the fault
                break
        done = wait(futures, PATIENCE_S).done
    assert done == set(futures), "some calls were never answered"
    return futures


@functools.cache
def places() -> Sequence[Place]:
    """The places that run while calls are answered, several times over because threads take turns as they like."""
    found: set[Place] = set()
    for _ in range(3):
        assert all(future.exception() is None for future in answers(found.add))
    return sorted(found)


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    yield
    wait_until_gone(*engine_threads())


@pytest.mark.parametrize("error", [RuntimeError("injected"), MemoryError("injected"), SystemExit("injected")], ids=repr)
def test_a_fault_anywhere_leaves_no_call_without_an_answer(error: BaseException) -> None:
    unanswered = []
    for place in places():
        pending = [place]

        def fail(at: Place, pending: list[Place] = pending) -> None:
            if at in pending:
                pending.remove(at)
                raise error

        try:
            futures = answers(fail)
        except AssertionError as missing:
            unanswered.append((place, missing))
            continue
        for number, future in enumerate(futures):
            if future.exception() is None:
                assert future.result() == [2.0] * number
    assert [(Path(file).name, line) for (file, line), _ in unanswered] == []


def test_the_places_cover_the_engine() -> None:
    files = {Path(file).name for file, _ in places()}
    assert files >= {"loop.py", "state.py", "prepare.py", "scheduler.py", "dispatcher.py", "runner.py", "settler.py"}
    assert len(places()) > 50
    assert sys.gettrace() is None or "coverage" in repr(sys.gettrace()), "nothing is traced afterwards"


@pytest.mark.parametrize("seed", range(3))
def test_calls_of_random_durations_and_failures_get_their_own_answers(seed: int) -> None:
    """Single calls from several threads, some of which fail or are cancelled, while batches take 0 to 20 ms."""
    chance = random.Random(seed)
    durations = [chance.uniform(0, 0.02) for _ in range(1000)]

    class Timed(Watched):
        max_batch_size = 8

        def preprocess(self, length: int) -> Any:
            if length % 17 == 3:
                raise KeyError(length)
            return np.full(1 + length % 5, float(length))

        def predict(self, batch: Any) -> Any:
            time.sleep(durations.pop())
            return batch * 2

    with Host(Timed(), max_queue=1000) as host, ThreadPoolExecutor(4) as callers:
        futures = list(callers.map(host.submit, range(300)))
        cancelled = [chance.random() < 0.1 and future.cancel() for future in futures]
        for length, future in enumerate(futures):
            if cancelled[length]:
                assert future.cancelled()
            elif length % 17 == 3:
                assert repr(future.exception(DEADLINE_S)) == f"KeyError({length})"
            else:
                assert future.result(DEADLINE_S) == [2.0 * length] * (1 + length % 5)
