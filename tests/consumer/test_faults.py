"""An exception or a hang at any call of the worker's code leaves no caller without an answer, and no message behind.

The places are found from the code itself: every call of the rooms `broker` and `consumer` that is made while a worker
serves calls of many kinds, starts, or stops. One after the other then fails, once. `make faults` lets all places fail
in all ways. An ordinary run lets each place fail in one way that calls others' code (Celery, Redis, users' hooks), and
one in three of those that call ours.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.fault_scenes import SCENES
from tests.support.fault_trials import LIFE, Lane, Nursery, Trial, lane, survey
from tests.support.faults import KINDS, OTHERS, OURS, places

#: Whether all places fail in all ways.
ALL = os.environ.get("FAULTS") == "all"
#: Servers and workers at the same time, because a trial mostly waits.
LANES = 4
#: Of the places that are met only while a worker starts or stops, an ordinary run tries one in so many, because each
#: of them takes two workers.
LIVES = 20


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lane]]:
    with ExitStack() as stack:
        nursery = Nursery()
        stack.callback(nursery.close)
        yield [stack.enter_context(lane(nursery, tmp_path_factory.mktemp("lane"))) for _ in range(LANES)]


@pytest.fixture(scope="module")
def surveyed(lanes: list[Lane]) -> dict[int, tuple[str, int]]:
    found = survey(lanes[0])
    for each in lanes:
        each.threads = lanes[0].threads
    return found


def trials(surveyed: dict[int, tuple[str, int]]) -> Iterator[Trial]:
    """What to try; in an ordinary run the kinds of faults take turns."""
    for place, (scene, mark) in sorted(surveyed.items()):
        kinds = [kind for kind in KINDS if kind != "hang" or mark == OTHERS]
        if ALL:
            yield from (Trial(place, kind, scene) for kind in kinds)
        elif place % LIVES == 0 if scene == LIFE else mark == OTHERS or (mark == OURS and place % 3 == 0):
            yield Trial(place, kinds[place // 3 % len(kinds)], scene)


@pytest.mark.worker
@pytest.mark.timeout(0 if ALL else 300)
def test_a_fault_anywhere_leaves_no_call_without_an_answer(
    lanes: list[Lane], surveyed: dict[int, tuple[str, int]]
) -> None:
    todo: queue.SimpleQueue[Trial] = queue.SimpleQueue()
    for trial in trials(surveyed):
        todo.put(trial)
    problems: list[str] = []

    def work(lane: Lane) -> None:
        while not todo.empty():
            try:
                trial = todo.get_nowait()
            except queue.Empty:
                return
            report = trial.run(lane)
            if report.problem:
                where = f"{places()[trial.place]} ({trial.kind}, {trial.scene})"
                problems.append(f"{where}: {report.problem}\n{report.log[-2000:]}")

    threads = [threading.Thread(target=work, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.worker
def test_the_places_cover_the_worker(surveyed: dict[int, tuple[str, int]]) -> None:
    files = {places()[place].file.name for place in surveyed}
    assert files >= {
        "fetch.py",
        "settle.py",
        "store.py",
        "decode.py",
        "bridge.py",
        "hub.py",
        "replay.py",
        "consumer.py",
    }
    assert files >= {"leases.py", "lua.py", "lease_refresher.py", "wakeup.py", "running_note.py", "retry.py"}
    assert {scene for scene, _ in surveyed.values()} == {*SCENES, LIFE}
