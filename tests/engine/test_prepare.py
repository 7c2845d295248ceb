"""Preparing: one job's failure in a hook is its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from batchery.batchers import WorkerDied

from tests.support.fakes import (
    DEADLINE_S,
    FakeModel,
    FakePorts,
    Gate,
    Held,
    Jobs,
    StartEngine,
    fails_for,
)

ERRORS = [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), StopIteration()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("hook", ["preprocess", "length", "postprocess"])
def test_what_a_per_item_hook_raises_fails_that_job_alone(
    hook: str, error: BaseException, start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    hooks: dict[str, Any] = {hook: fails_for(6 if hook == "postprocess" else 3, error)}
    start(FakeModel(**hooks))
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    ports.wait_for_outcomes(5)
    assert ports.answers() == {"double-1": 2, "double-2": 4, "double-3": error, "double-4": 8, "double-5": 10}


@pytest.mark.parametrize("hook", ["preprocess", "predict", "postprocess"])
def test_an_exception_that_is_returned_fails_that_job_alone(
    hook: str, start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    bad = ValueError("no number")

    def judge(item: Any) -> Any:
        return bad if item == 3 else item

    hooks: dict[str, Any] = {"predict": lambda items: items, hook: judge}
    if hook == "predict":
        hooks["predict"] = lambda items: [judge(item) for item in items]
    start(FakeModel(**hooks))
    ports.put(*jobs.many(1, 2, 3, 4))
    ports.wait_for_outcomes(4)
    assert ports.answers() == {"double-1": 1, "double-2": 2, "double-3": bad, "double-4": 4}
    assert next(outcome for outcome in ports.outcomes if outcome.job.id == "double-3").error is bad


class Shapes:
    """A user's batcher whose `shape_class` is whatever the test says."""

    def __init__(self, shape_class: Callable[[Any], Any]) -> None:
        self.shape_class = shape_class

    def batch(self, items: Sequence[Any]) -> tuple[Any, None]:
        return list(items), None

    def unbatch(self, outputs: Any, context: None) -> list[Any]:
        return list(outputs)


@pytest.mark.parametrize(
    "shape_class", [lambda item: [0, 1 // (item - 3)][0], lambda item: [3] if item == 3 else 0], ids=["raises", "list"]
)
def test_a_shape_class_that_cannot_be_told_or_compared_fails_that_job_alone(
    shape_class: Callable[[Any], Any], start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    start(FakeModel(batcher=Shapes(shape_class)))
    ports.put(*jobs.many(1, 2, 3, 4))
    ports.wait_for_outcomes(4)
    bad = ports.answers().pop("double-3")
    assert isinstance(bad, ZeroDivisionError | TypeError)
    assert [outcome.value for outcome in ports.outcomes if outcome.error is None] == [2, 4, 8]


def test_shape_classes_run_apart(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    start(FakeModel(predict=held, batcher=Shapes(lambda item: item % 2)))
    held.gate.open()
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    ports.wait_for_outcomes(5)
    assert held.batches == [[1, 3, 5], [2, 4]]


class Miscounting(FakeModel):
    """Has too few items where there are several calls, and one too many for a single one that is 3."""

    def prepare_many(self, calls: Sequence[Any]) -> list[Any]:
        items = super().prepare_many(calls)
        return items * 2 if items == [3] else items[: len(items) // 2 + 1]


def test_a_wrong_number_of_items_never_shifts_them(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    start(Miscounting())
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    ports.wait_for_outcomes(5)
    answers = ports.answers()
    assert isinstance(answers.pop("double-3"), ValueError)
    assert answers == {"double-1": 2, "double-2": 4, "double-4": 8, "double-5": 10}


def test_a_job_that_has_ended_too_many_workers_alone_fails_before_anything_of_it_runs(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    predict, prepared = Held(), list[Any]()
    predict.gate.open()

    def preprocess(item: Any) -> Any:
        prepared.append(item)
        return item

    start(FakeModel(predict=predict, preprocess=preprocess))
    some = jobs.many(1, 2, 3)
    for job, deaths, alone in zip(some, (3, 9, 0), (2, 1, 0), strict=True):
        job.redelivered, job.deaths, job.lone_deaths = True, deaths, alone
    ports.put(*some)
    ports.wait_for_outcomes(3)
    answers = ports.answers()
    assert isinstance(answers.pop("double-1"), WorkerDied)
    assert answers == {"double-2": 4, "double-3": 6}
    assert prepared == [3, 2], "a suspect is prepared when it runs"
    assert predict.batches == [[3], [2]]


def test_a_slow_preprocess_of_one_task_holds_up_no_other_task(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    gate = Gate()

    def wait(item: Any) -> Any:
        gate.pass_through()
        return item

    start(FakeModel("slow", preprocess=wait, max_batch_size=2), FakeModel("quick", preprocess=lambda item: item))
    ports.put(*(jobs(number, task="slow") for number in range(20)))
    gate.wait_until_reached()
    ports.put(*(jobs(number, task="quick") for number in range(3)))
    ports.wait_for_outcomes(3)
    assert ports.answers() == {f"quick-{number}": 2 * number for number in range(3)}
    gate.open()
    ports.wait_for_outcomes(23)


class Meeting:
    """A `preprocess` that tells how many threads are in it at once, and waits until that is `wanted`."""

    def __init__(self, wanted: int) -> None:
        self.most = 0
        self._wanted = wanted
        self._inside = 0
        self._changed = threading.Condition()

    def __call__(self, item: Any) -> Any:
        with self._changed:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.most >= self._wanted, DEADLINE_S)
        threading.Event().wait(0.001)  # long enough for another thread to come in, if one may
        with self._changed:
            self._inside -= 1
        return item


@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_threads_as_its_option_says_are_in_a_tasks_preprocess_and_one_by_default(
    threads: int, start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    meeting = Meeting(threads)
    options: dict[str, Any] = {"preprocess_threads": threads} if threads > 1 else {}
    start(FakeModel(preprocess=meeting, max_batch_size=2, **options))
    ports.put(*jobs.many(*range(30)))
    ports.wait_for_outcomes(30)
    assert meeting.most == threads
