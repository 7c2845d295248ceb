"""An exception or a hang at any call of the worker's code leaves no caller without an answer, and no message behind.

The places are found from the code itself: every call of the rooms `broker` and `consumer` that is made while a worker
serves calls of many kinds, starts, or stops. One after the other then fails, once. `make faults` lets all places fail
in all ways. An ordinary run lets each place fail in one way that calls others' code (Celery, Redis, users' hooks), and
one in four of those that call ours.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import pytest

from tests.support.fault_trials import EXTENDED, LIFE, QUICK, SLOW, Lane, Nursery, Trial, lane, survey
from tests.support.faults import KINDS, OTHERS, OURS, places

#: Whether all places fail in all ways.
ALL = os.environ.get("FAULTS") == "all"
#: Settings of workers that take different ways, and how many of each run at a time, because a trial mostly waits.
WORKERS: Sequence[tuple[Mapping[str, str], int]] = [({}, 3), (EXTENDED, 1)]
SURVEYED = [[*QUICK, *SLOW], QUICK] if ALL else [[*QUICK, LIFE], QUICK]
#: Of the places that are met only where one worker ends and another one starts, an ordinary run tries one in so many.
SLOW_PART = 20


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[list[Lane]]]:
    """Lanes for each of `WORKERS`."""
    with ExitStack() as stack:
        nursery = Nursery()
        stack.callback(nursery.close)
        yield [
            [stack.enter_context(lane(nursery, tmp_path_factory.mktemp("lane"), env)) for _ in range(count)]
            for env, count in WORKERS
        ]


@pytest.fixture(scope="module")
def surveyed(lanes: list[list[Lane]]) -> list[dict[int, tuple[str, int]]]:
    """The places for each of `WORKERS`: those that no earlier one takes."""
    found: list[dict[int, tuple[str, int]]] = []
    for group, scenes in zip(lanes, SURVEYED, strict=True):
        known = {place for places in found for place in places}
        found.append({place: mark for place, mark in survey(group[0], scenes).items() if place not in known})
        for each in group:
            each.threads = group[0].threads
    return found


def trials(surveyed: dict[int, tuple[str, int]]) -> Iterator[Trial]:
    """What to try; in an ordinary run the kinds of faults take turns."""
    for place, (scene, mark) in sorted(surveyed.items()):
        kinds = [kind for kind in KINDS if kind != "hang" or mark == OTHERS]
        if ALL:
            yield from (Trial(place, kind, scene) for kind in kinds)
        elif place % SLOW_PART == 0 if scene in SLOW else mark == OTHERS or (mark == OURS and place % 4 == 0):
            yield Trial(place, kinds[place // 4 % len(kinds)], scene)


@pytest.mark.worker
@pytest.mark.timeout(0 if ALL else 300)
def test_a_fault_anywhere_leaves_no_call_without_an_answer(
    lanes: list[list[Lane]], surveyed: list[dict[int, tuple[str, int]]]
) -> None:
    problems: list[str] = []

    def work(lane: Lane, todo: queue.SimpleQueue[Trial | None]) -> None:
        while (trial := todo.get()) is not None:
            report = trial.run(lane)
            if report.problem:
                where = f"{places()[trial.place]} ({trial.kind}, {trial.scene})"
                problems.append(f"{where}: {report.problem}\n{report.log[-2000:]}")

    threads = []
    for group, found in zip(lanes, surveyed, strict=True):
        todo: queue.SimpleQueue[Trial | None] = queue.SimpleQueue()
        for trial in (*trials(found), *[None] * len(group)):
            todo.put(trial)
        threads += [threading.Thread(target=work, args=(each, todo)) for each in group]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.worker
def test_the_places_cover_the_worker(surveyed: list[dict[int, tuple[str, int]]]) -> None:
    found = {place: scene for places in surveyed for place, (scene, _) in places.items()}
    files = {places()[place].file.stem for place in found}
    assert files >= {"fetch", "settle", "store", "decode", "bridge", "hub", "replay", "consumer", "ownership"}
    assert files >= {"leases", "lua", "lease_refresher", "wakeup", "running_note", "retry"}
    assert {*found.values()} == {*SURVEYED[0]}
