"""The engine's threads, between a front and models that the test holds up as it likes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from batchery.batchers import Batch, BatchFailed, CostModel, Job, OutputMismatch, PadBatcher
from batchery.configs import WorkerOptions
from batchery.worker.engine import Engine

from tests.support.fakes import (
    DEADLINE_S,
    FakeFront,
    FakeModel,
    Gate,
    Held,
    Jobs,
    engine_threads,
    in_background,
    wait_until_gone,
)
from tests.support.services import wait_until

StartEngine = Callable[..., Engine]


def ids(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


# -- From claim to settle ----------------------------------------------------------------------------------------------


def test_every_job_gets_the_answer_to_its_own_input(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    start(FakeModel(max_batch_size=4))
    front.put(*jobs.many(*range(100)))
    front.wait_for_outcomes(100)
    assert front.answers() == {f"double-{n}": n * 2 for n in range(100)}
    assert len(front.outcomes) == 100


def test_jobs_run_in_the_order_of_their_claims(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held = Held()
    start(FakeModel(predict=held, max_batch_size=2))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(*jobs.many(1, 2, 3))
    front.put(*jobs.many(4, 5))
    front.wait_until_all_are_claimed()
    held.gate.open()
    front.wait_for_outcomes(6)
    assert [item for batch in held.batches for item in batch] == [0, 1, 2, 3, 4, 5]
    assert ids([outcome.job for outcome in front.outcomes]) == [f"double-{n}" for n in range(6)]


def test_jobs_that_come_while_a_batch_runs_share_the_next_one(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held = Held()
    start(FakeModel(predict=held))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    for number in range(1, 6):
        front.put(jobs(number))
    front.wait_until_all_are_claimed()
    held.gate.open()
    front.wait_for_outcomes(6)
    assert held.batches == [[0], [1, 2, 3, 4, 5]]


def test_no_more_is_claimed_than_may_be_held(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held = Held()
    start(FakeModel(predict=held, max_batch_size=4, look_ahead=2))
    front.put(*jobs.many(*range(200)))
    front.wait_for(lambda: len(front.claimed) == 4 * 2 + 3 * 4, "as many as may be are claimed")
    held.gate.wait_until_reached()
    assert sum(front.rooms) == 20
    held.gate.open()
    front.wait_for_outcomes(200)
    assert max(front.rooms) <= 20


def test_a_batch_that_is_not_full_runs_when_its_wait_is_over(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    start(FakeModel(max_wait_ms=20))
    front.put(jobs(1, enqueued_at=time.monotonic()))
    front.wait_for_outcomes(1)


def test_a_batch_that_is_full_does_not_wait(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    start(FakeModel(max_wait_ms=1e9, max_batch_size=2))
    front.put(*jobs.many(1, 2, enqueued_at=time.monotonic()))
    front.wait_for_outcomes(2)
    assert front.batches == [["double-1", "double-2"]]


def test_the_device_goes_to_the_task_with_the_oldest_due_job(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held = Held()
    waits = FakeModel("waits", max_wait_ms=1e9, max_batch_size=2)
    start(FakeModel("a", predict=held), FakeModel("b", predict=held), waits)
    front.put(jobs(0, "a"))
    held.gate.wait_until_reached()
    front.put(jobs(1, "waits", enqueued_at=time.monotonic()))
    front.put(jobs(2, "b"), jobs(3, "a"), jobs(4, "b"), jobs(5, "a"))
    front.wait_until_all_are_claimed()
    held.gate.open()
    front.wait_for_outcomes(5)
    assert front.batches == [["a-0"], ["b-2", "b-4"], ["a-3", "a-5"]]
    front.put(jobs(6, "waits", enqueued_at=time.monotonic()))
    front.wait_for_outcomes(7)
    assert front.batches[-1] == ["waits-1", "waits-6"]


def test_jobs_that_nobody_wants_any_more_do_not_run(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    front.unwanted = {"double-1", "double-3", "double-4"}
    engine = start(FakeModel(max_batch_size=3))
    front.put(*jobs.many(0, 1, 2, 3, 4, 5))
    front.wait_for_outcomes(3)
    assert front.answers() == {"double-0": 0, "double-2": 4, "double-5": 10}
    assert engine.drain(DEADLINE_S)
    assert engine.stats()["held"] == 0


def test_a_batch_that_nobody_wants_any_more_does_not_run(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    front.unwanted = {"double-1"}
    start(FakeModel(max_batch_size=1))
    front.put(*jobs.many(1, 2))
    front.wait_for_outcomes(1)
    assert front.batches == [["double-2"]]


def test_jobs_may_come_in_by_another_way_than_a_claim(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    engine = start(FakeModel(preprocess=abs))
    engine.submit([])
    engine.submit(jobs.many(-1, -2))
    front.wait_for_outcomes(2)
    assert front.answers() == {"double--1": 2, "double--2": 4}


def test_poking_settles_though_nothing_was_run(start: StartEngine, front: FakeFront) -> None:
    engine = start(FakeModel())
    engine.poke()
    front.wait_for(lambda: front.settlements == 1, "a settlement")
    assert front.outcomes == []


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """The shapes (rows, longest) that cost models have observed."""
    shapes: list[tuple[int, int | None]] = []
    monkeypatch.setattr(CostModel, "observe", lambda _self, count, longest, _ms: shapes.append((count, longest)))
    return shapes


def test_the_figures_tell_what_was_done(
    start: StartEngine, front: FakeFront, jobs: Jobs, measured: list[tuple[int, int | None]]
) -> None:
    def fails_for_two(items: list[Any]) -> list[Any]:
        return [ValueError() if item == 2 else item for item in items]

    engine = start(FakeModel(predict=fails_for_two, length=lambda item: item, max_batch_size=3))
    engine.submit(jobs.many(1, 2, 3))
    front.wait_for_outcomes(3)
    assert engine.drain(DEADLINE_S)
    assert engine.stats() == {
        "batches": 1,
        "jobs": 3,
        "failed": 1,
        "held": 0,
        "mean_batch_size": 3.0,
        "padding_share": 0.3333,
        "device_waited_share": 0.0,
    }
    figures = engine.figures("double")
    assert figures["closed_by"] == {"full": 1}
    assert figures["run_ms"] > 0
    assert measured == [(3, 3)]


def test_a_running_batch_is_known_and_has_its_times(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    times = iter(range(1000))
    held = Held()
    engine = start(FakeModel(predict=held), clock=lambda: float(next(times)))
    assert engine.running == []
    front.put(jobs(1))
    held.gate.wait_until_reached()
    assert ids(engine.running) == ["double-1"]
    held.gate.open()
    (outcome,) = front.wait_for_outcomes(1)
    assert outcome.batch is not None
    assert 0 < outcome.batch.started_at < outcome.batch.finished_at
    assert engine.drain(DEADLINE_S)
    assert engine.running == []


def test_an_engine_counts_as_hung_while_a_batch_exceeds_its_time_limit(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    now = [1000.0]
    held = Held()
    engine = start(FakeModel(predict=held, batch_time_limit_s=30), clock=lambda: now[0])
    assert not engine.hung
    front.put(jobs(1))
    held.gate.wait_until_reached()
    now[0] += 30
    assert not engine.hung
    now[0] += 0.1
    assert engine.hung
    held.gate.open()
    front.wait_for_outcomes(1)
    assert engine.drain(DEADLINE_S)
    assert not engine.hung


# -- One job's failure is its own --------------------------------------------------------------------------------------


def fails_for(bad: Any, error: BaseException) -> Callable[[Any], Any]:
    """A function that returns its argument, or raises where that is `bad`."""

    def function(item: Any) -> Any:
        if item == bad:
            raise error
        return item

    return function


ERRORS = [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), StopIteration()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("hook", ["preprocess", "length", "postprocess"])
def test_what_a_per_item_hook_raises_fails_that_job_alone(
    hook: str, error: BaseException, start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    hooks: dict[str, Any] = {hook: fails_for(6 if hook == "postprocess" else 3, error)}
    start(FakeModel(**hooks))
    front.put(*jobs.many(1, 2, 3, 4, 5))
    front.wait_for_outcomes(5)
    assert front.answers() == {"double-1": 2, "double-2": 4, "double-3": error, "double-4": 8, "double-5": 10}


@pytest.mark.parametrize("error", [*ERRORS, MemoryError()], ids=repr)
def test_what_the_model_raises_for_one_item_fails_that_job_alone(
    error: BaseException, start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    check = fails_for(3, error)
    start(FakeModel(predict=lambda items: [check(item) for item in items]))
    front.put(*jobs.many(1, 2, 3, 4, 5))
    front.wait_for_outcomes(5)
    assert front.answers() == {"double-1": 1, "double-2": 2, "double-3": error, "double-4": 4, "double-5": 5}


@pytest.mark.parametrize("hook", ["preprocess", "predict", "postprocess"])
def test_an_exception_that_is_returned_fails_that_job_alone(
    hook: str, start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    bad = ValueError("no number")

    def judge(item: Any) -> Any:
        return bad if item == 3 else item

    hooks: dict[str, Any] = {"predict": lambda items: items, hook: judge}
    if hook == "predict":
        hooks["predict"] = lambda items: [judge(item) for item in items]
    start(FakeModel(**hooks))
    front.put(*jobs.many(1, 2, 3, 4))
    front.wait_for_outcomes(4)
    assert front.answers() == {"double-1": 1, "double-2": 2, "double-3": bad, "double-4": 4}
    assert next(outcome for outcome in front.outcomes if outcome.job.id == "double-3").error is bad


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
    shape_class: Callable[[Any], Any], start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    start(FakeModel(batcher=Shapes(shape_class)))
    front.put(*jobs.many(1, 2, 3, 4))
    front.wait_for_outcomes(4)
    bad = front.answers().pop("double-3")
    assert isinstance(bad, ZeroDivisionError | TypeError)
    assert [outcome.value for outcome in front.outcomes if outcome.error is None] == [2, 4, 8]


def test_shape_classes_run_apart(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held = Held()
    start(FakeModel(predict=held, batcher=Shapes(lambda item: item % 2)))
    held.gate.open()
    front.put(*jobs.many(1, 2, 3, 4, 5))
    front.wait_for_outcomes(5)
    assert held.batches == [[1, 3, 5], [2, 4]]


class Miscounting(FakeModel):
    """Has too few items where there are several calls, and one too many for a single one that is 3."""

    def prepare_many(self, calls: Sequence[Any]) -> list[Any]:
        items = super().prepare_many(calls)
        return items * 2 if items == [3] else items[: len(items) // 2 + 1]


def test_a_wrong_number_of_items_never_shifts_them(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    start(Miscounting())
    front.put(*jobs.many(1, 2, 3, 4, 5))
    front.wait_for_outcomes(5)
    answers = front.answers()
    assert isinstance(answers.pop("double-3"), ValueError)
    assert answers == {"double-1": 2, "double-2": 4, "double-4": 8, "double-5": 10}


def test_too_few_outputs_are_an_error_for_those_that_lack_one_and_never_a_shift(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    start(FakeModel(predict=lambda items: [item for item in items if item != 3]))
    front.put(*jobs.many(1, 2, 3, 4, 5))
    front.wait_for_outcomes(5)
    answers = front.answers()
    assert isinstance(answers.pop("double-3"), OutputMismatch)
    assert answers == {"double-1": 1, "double-2": 2, "double-4": 4, "double-5": 5}


def test_outcomes_that_cannot_be_stored_hold_up_nobody_else(
    start: StartEngine, front: FakeFront, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    front.failing = {"settle": ConnectionError("gone")}
    engine = start(FakeModel(max_batch_size=1))
    for value in (1, 2):
        front.put(jobs(value))
        front.wait_for_outcomes(value)
    assert engine.drain(DEADLINE_S)
    assert front.broken_by == []
    assert "1 outcomes could not be stored" in caplog.text


def test_results_that_wait_to_be_stored_hold_up_the_device(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    gate = Gate()

    def postprocess(output: int) -> int:
        gate.pass_through()  # on the settle thread
        return output

    engine = start(FakeModel(postprocess=postprocess, max_batch_size=40, look_ahead=4))
    front.put(*jobs.many(*range(200)))
    front.wait_until_all_are_claimed()
    front.wait_for(lambda: len(front.batches) == 2, "the results of two batches wait")
    waiting = 200 - sum(map(len, front.batches))
    drained = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: front.given_back, "what has not run is given back")
    assert ids(front.given_back) == [f"double-{n}" for n in range(200 - waiting, 200)]
    gate.open()
    assert drained.result(DEADLINE_S)
    assert front.answers() == {f"double-{n}": 2 * n for n in range(200 - waiting)}


def test_what_has_come_meanwhile_is_settled_in_one_step(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    gate = Gate()

    def postprocess(output: int) -> int:
        gate.pass_through()
        return output

    engine = start(FakeModel("one", postprocess=postprocess, max_batch_size=1), FakeModel("two", max_batch_size=2))
    front.put(jobs(1, task="one"))
    gate.wait_until_reached()
    front.put(jobs(2, task="two"))
    front.wait_for(lambda: len(front.batches) == 2, "the next batch runs")
    wait_until(lambda: not engine.running, "it is through")
    engine.poke()
    gate.open()
    front.wait_for_outcomes(2)
    assert engine.drain(DEADLINE_S)
    assert front.answers() == {"one-1": 2, "two-2": 4}
    assert front.settlements == 2, "the second batch and the poke make one"


def test_large_batches_that_take_no_time_are_settled_where_they_ran(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    threads: set[str] = set()

    def postprocess(output: int) -> int:
        threads.add(threading.current_thread().name)
        return output

    start(FakeModel(postprocess=postprocess, max_batch_size=64), clock=lambda: 0.0)
    front.put(*jobs.many(*range(640)))
    front.wait_for_outcomes(640)
    assert "batchery-device" in threads
    assert front.answers() == {f"double-{n}": 2 * n for n in range(640)}


def test_the_device_goes_on_when_results_are_stored(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    gate = Gate()

    def postprocess(output: int) -> int:
        gate.pass_through()
        return output

    start(FakeModel(postprocess=postprocess, max_batch_size=40, look_ahead=4))
    front.put(*jobs.many(*range(200)))
    front.wait_until_all_are_claimed()
    front.wait_for(lambda: len(front.batches) == 2, "the results of two batches wait")
    gate.open()
    front.wait_for_outcomes(200)
    assert front.answers() == {f"double-{n}": 2 * n for n in range(200)}


# -- Draining ----------------------------------------------------------------------------------------------------------


def test_draining_gives_back_what_waits_in_order_and_finishes_what_runs(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=2))
    front.put(*jobs.many(*range(7)))
    held.gate.wait_until_reached()
    done = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: len(front.given_back) == 5, "five are given back")
    assert not done.done()
    held.gate.open()
    assert done.result(DEADLINE_S)
    assert ids(front.given_back) == [f"double-{n}" for n in range(2, 7)]
    assert front.answers() == {"double-0": 0, "double-1": 2}
    assert engine.stats()["held"] == 0


def test_draining_gives_back_what_is_in_preparation_together_with_what_waits_and_in_order(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    held, gate = Held(), Gate()

    def preprocess(item: int) -> int:
        if item == 1:
            gate.pass_through()
        return item

    engine = start(FakeModel(predict=held, preprocess=preprocess), options=WorkerOptions(preprocess_threads=2))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(*jobs.many(1, 2, 3, 4))
    gate.wait_until_reached()
    done = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: front.interrupted, "the drain has begun")
    gate.open()
    front.wait_for(lambda: len(front.given_back) == 4, "four are given back")
    assert ids(front.given_back) == [f"double-{n}" for n in (1, 2, 3, 4)]
    held.gate.open()
    assert done.result(DEADLINE_S)


def test_what_was_claimed_while_the_drain_began_is_given_back(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    engine = start(FakeModel(preprocess=abs))
    front.may_claim.clear()
    front.put(*jobs.many(1, 2))
    front.wait_for(lambda: front.claimed, "they are claimed")
    done = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: front.interrupted, "the drain has begun")
    front.may_claim.set()
    assert done.result(DEADLINE_S)
    assert sorted(ids(front.given_back)) == ["double-1", "double-2"]
    assert front.outcomes == []


def test_a_drain_gives_up_on_a_model_that_hangs(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=1))
    front.put(*jobs.many(1, 2))
    held.gate.wait_until_reached()
    assert not engine.drain(0.01)
    assert ids(front.given_back) == ["double-2"]
    assert ids(engine.running) == ["double-1"]
    held.gate.open()
    front.wait_for_outcomes(1)
    wait_until_gone(*engine_threads())
    assert engine.drain(DEADLINE_S)


def test_a_drain_gives_up_on_a_preprocess_that_hangs_but_gives_back_what_waits(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    held, gate = Held(), Gate()

    def preprocess(item: int) -> int:
        if item == 1:
            gate.pass_through()
        return item

    engine = start(FakeModel(predict=held, preprocess=preprocess, max_batch_size=1))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(jobs(1))
    gate.wait_until_reached()
    front.put(jobs(2))
    front.wait_until_all_are_claimed()
    held.gate.open()
    front.wait_for_outcomes(1)
    assert not engine.drain(0.01)
    gate.open()
    front.wait_for(lambda: len(front.given_back) + len(front.outcomes) == 3, "each is given back or answered")
    assert "double-1" in ids(front.given_back)


def test_a_drained_engine_gives_back_what_is_submitted_to_it(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    engine = start(FakeModel("quick"), FakeModel("slow", preprocess=abs))
    assert engine.drain(DEADLINE_S)
    engine.submit([jobs(1, "quick"), jobs(2, "slow")])
    assert ids(front.given_back) == ["quick-1", "slow-2"]
    assert engine.stats()["held"] == 0


def test_draining_twice_does_no_harm(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    engine = start(FakeModel(preprocess=abs))
    front.put(jobs(1))
    front.wait_for_outcomes(1)
    assert engine.drain(DEADLINE_S)
    assert engine_threads() == []
    assert engine.drain(DEADLINE_S)


def test_draining_from_two_threads_gives_back_every_job_once(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held, gate = Held(), Gate()

    def preprocess(item: int) -> int:
        if item == 1:
            gate.pass_through()
        return item

    engine = start(FakeModel(predict=held, preprocess=preprocess))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(jobs(1))
    gate.wait_until_reached()
    front.put(*jobs.many(2, 3, 4))
    front.wait_until_all_are_claimed()
    first = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: front.interrupts == 1, "the first drain has begun")
    second = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: front.interrupts == 2, "the second drain has begun")
    gate.open()
    held.gate.open()
    assert first.result(DEADLINE_S)
    assert second.result(DEADLINE_S)
    assert sorted(ids(front.given_back)) == [f"double-{n}" for n in (1, 2, 3, 4)]


def test_an_engine_that_was_not_started_can_be_drained(front: FakeFront) -> None:
    assert Engine({"double": FakeModel()}, front, WorkerOptions()).drain(DEADLINE_S)


def test_a_model_that_cannot_be_loaded_says_so_before_anything_is_claimed(front: FakeFront) -> None:
    class Broken(FakeModel):
        def ensure_loaded(self, device: str = "auto") -> str:
            raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        Engine({"double": Broken()}, front, WorkerOptions()).load()
    assert front.rooms == []


# -- When the engine itself breaks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(2)], ids=repr)
@pytest.mark.parametrize("method", ["claim", "drop_cancelled", "started"])
def test_a_front_that_raises_is_told_that_the_engine_is_broken(
    method: str, error: BaseException, start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    front.failing = {method: error}
    engine = start(FakeModel(max_batch_size=1))
    front.put(*jobs.many(1, 2))
    front.wait_for(lambda: front.broken_by, "the front is told")
    assert repr(error) in repr(front.broken_by)
    engine.drain(DEADLINE_S)
    assert len(front.given_back) + len(front.line) == (2 if method == "claim" else 1)


class BrokenPlanner:
    """Raises when it is asked."""

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        raise ZeroDivisionError

    def due_at(self, waiting: Sequence[Job]) -> float:
        return 0.0

    def set_options(self, options: Any) -> None:
        pass


def test_a_planner_that_raises_breaks_the_engine_instead_of_hanging_it(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    engine = start(FakeModel(), planners={"double": BrokenPlanner()})
    front.put(*jobs.many(1, 2))
    front.wait_for(lambda: front.broken_by, "the front is told")
    assert isinstance(front.broken_by[0], ZeroDivisionError)
    assert engine.drain(DEADLINE_S)
    assert ids(front.given_back) == ["double-1", "double-2"]


def test_the_running_batch_still_finishes_when_claiming_breaks(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=1))
    front.put(*jobs.many(1, 2))
    held.gate.wait_until_reached()
    front.failing = {"claim": RuntimeError("broken")}
    front.put(jobs(3))
    front.wait_for(lambda: front.broken_by, "the front is told")
    done = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: len(front.given_back) == 2, "the others are given back")
    held.gate.open()
    assert done.result(DEADLINE_S)
    assert front.answers() == {"double-1": 2}


def test_a_drain_does_not_wait_for_outcomes_that_nobody_settles_any_more(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    front.failing = {"settle": SystemExit(1)}
    engine = start(FakeModel())
    front.put(jobs(1))
    front.wait_for(lambda: front.broken_by, "the front is told")
    assert isinstance(front.broken_by[0], BatchFailed)
    assert not engine.drain(1e6)


def test_a_broken_engine_claims_nothing_more(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    front.failing = {"started": RuntimeError("broken")}
    start(FakeModel(max_batch_size=1))
    (claim_thread,) = [thread for thread in engine_threads() if thread.name == "batchery-claim"]
    front.put(jobs(1))
    wait_until_gone(claim_thread)
    front.put(jobs(2))
    assert ids(front.claimed) == ["double-1"]


# -- While a batch runs ------------------------------------------------------------------------------------------------


class Recorded:
    """A list of items; writes down what is put together, and can be held up while it does."""

    def __init__(self) -> None:
        self.collated: list[list[Any]] = []
        self.gate = Gate()
        self.gate.open()
        self.changed = threading.Condition()

    def batch(self, items: Sequence[Any]) -> tuple[list[Any], None]:
        with self.changed:
            self.collated.append(list(items))
            self.changed.notify_all()
        self.gate.pass_through()
        return list(items), None

    def unbatch(self, outputs: list[Any], context: None) -> list[Any]:
        return outputs

    def wait_for(self, *batches: list[Any]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.collated == [*batches], DEADLINE_S), self.collated


@pytest.fixture
def ahead(start: StartEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeModel], Engine]:
    """An engine that believes that any batch runs long enough for the next one to be put together meanwhile."""
    monkeypatch.setattr("batchery.worker.engine.scheduler._WORTH_COLLATING_AHEAD_S", 0.0)
    return start


def test_the_next_batch_is_put_together_while_one_runs(ahead: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held, batcher = Held(), Recorded()
    engine = ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(*jobs.many(1, 2, 3))
    batcher.wait_for([0], [1, 2])
    assert held.batches == [[0]]
    assert ids(engine.running) == ["double-0"]
    held.gate.open()
    front.wait_for_outcomes(4)
    assert front.answers() == {f"double-{n}": n * 2 for n in range(4)}
    batcher.wait_for([0], [1, 2], [3])


def test_what_was_put_together_ahead_goes_back_in_order_when_the_engine_drains(
    ahead: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    held, batcher = Held(), Recorded()
    engine = ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(*jobs.many(1, 2, 3))
    batcher.wait_for([0], [1, 2])
    front.wait_until_all_are_claimed()
    drained = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: len(front.given_back) == 3, "what does not run is given back")
    held.gate.open()
    assert drained.result(DEADLINE_S)
    assert ids(front.given_back) == ["double-1", "double-2", "double-3"]
    assert front.answers() == {"double-0": 0}


def test_what_is_being_put_together_goes_back_in_order_too(ahead: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held, batcher = Held(), Recorded()
    engine = ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    batcher.gate = Gate()
    front.put(*jobs.many(1, 2, 3))
    batcher.wait_for([0], [1, 2])
    front.wait_until_all_are_claimed()
    drained = in_background(engine.drain, DEADLINE_S)
    front.wait_for(lambda: front.interrupts, "the engine drains")
    batcher.gate.open()
    held.gate.open()
    assert drained.result(DEADLINE_S)
    assert ids(front.given_back) == ["double-1", "double-2", "double-3"]


def test_what_cannot_be_put_together_ahead_fails_alone(ahead: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    class Picky(Recorded):
        def batch(self, items: Sequence[Any]) -> tuple[list[Any], None]:
            if 2 in items:
                raise ValueError("two does not go with others, nor alone")
            return super().batch(items)

    held = Held()
    ahead(FakeModel(predict=held, batcher=Picky(), max_batch_size=3))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(*jobs.many(1, 2, 3))
    front.wait_until_all_are_claimed()
    held.gate.open()
    front.wait_for_outcomes(4)
    answers = front.answers()
    assert isinstance(answers.pop("double-2"), ValueError)
    assert answers == {"double-0": 0, "double-1": 2, "double-3": 6}


def test_nobody_wants_what_is_put_together_and_so_it_does_not_run(
    ahead: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    held = Held()
    front.unwanted = {"double-1", "double-2"}
    ahead(FakeModel(predict=held, max_batch_size=2))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(*jobs.many(1, 2, 3))
    front.wait_until_all_are_claimed()
    held.gate.open()
    front.wait_for_outcomes(2)
    assert held.batches == [[0], [3]]


def test_a_batch_that_may_still_grow_is_not_put_together_ahead(
    ahead: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    held, batcher = Held(), Recorded()
    ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=3))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    for value in (1, 2):
        front.put(jobs(value))
        front.wait_until_all_are_claimed()
    assert batcher.collated == [[0]]
    front.put(jobs(3))
    batcher.wait_for([0], [1, 2, 3])
    held.gate.open()


def test_a_more_urgent_job_opens_what_was_put_together(ahead: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    held, batcher = Held(), Recorded()
    ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2, max_age_ms=float("inf")))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(*jobs.many(1, 2, priority=9))
    batcher.wait_for([0], [1, 2])
    front.put(jobs(3, priority=0))
    batcher.wait_for([0], [1, 2], [3, 1])
    held.gate.open()
    front.wait_for_outcomes(4)
    assert held.batches == [[0], [3, 1], [2]]


def test_what_nobody_wants_any_more_is_left_out_of_what_was_put_together(
    ahead: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    held, batcher = Held(), Recorded()
    ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2))
    front.put(jobs(0))
    held.gate.wait_until_reached()
    front.put(*jobs.many(1, 2))
    batcher.wait_for([0], [1, 2])
    front.unwanted = {"double-1"}
    held.gate.open()
    front.wait_for_outcomes(2)
    assert held.batches == [[0], [2]]


# -- Memory ------------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_into_memory_runs_in_parts_and_only_once(
    start: StartEngine, front: FakeFront, jobs: Jobs
) -> None:
    sizes: list[int] = []

    def predict(items: list[Any]) -> list[Any]:
        sizes.append(len(items))
        if len(items) > 4:
            raise MemoryError("no room for that")
        return items

    engine = start(FakeModel(predict=predict, max_batch_size=8))
    front.put(*jobs.many(*range(8)))
    front.wait_for_outcomes(8)
    front.put(*jobs.many(*range(8, 40)))
    front.wait_for_outcomes(40)
    assert all(outcome.error is None for outcome in front.outcomes)
    assert engine.figures("double")["out_of_memory"] == sum(size > 4 for size in sizes)
    assert engine.figures("double")["token_ceiling"] is not None


def test_a_job_that_fits_only_into_freed_memory_does_not_fail(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    tries: list[Any] = []

    def predict(items: list[Any]) -> list[Any]:
        tries.append(items)
        if len(tries) == 1:
            raise MemoryError("no room before others have left")
        return items

    start(FakeModel(predict=predict))
    front.put(jobs(1))
    front.wait_for_outcomes(1)
    assert front.answers() == {"double-1": 1}


def test_a_lost_device_is_no_failure_of_the_jobs(start: StartEngine, front: FakeFront, jobs: Jobs) -> None:
    def predict(items: list[Any]) -> list[Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = start(FakeModel(predict=predict))
    front.put(jobs(1))
    front.wait_for(lambda: front.broken_by, "the front learns that nothing will be served any more")
    assert not engine.drain(DEADLINE_S)
    assert front.outcomes == []


# -- Warm-up -----------------------------------------------------------------------------------------------------------


def with_examples(model: FakeModel, *examples: Any) -> FakeModel:
    model.examples = [*examples]
    return model


def test_examples_are_measured_before_work_is_taken(
    start: StartEngine, front: FakeFront, measured: list[tuple[int, int | None]]
) -> None:
    batches: list[list[Any]] = []

    def predict(items: list[Any]) -> list[Any]:
        assert not front.claimed
        batches.append(items)
        return items

    start(with_examples(FakeModel(predict=predict, length=len, max_batch_size=16), "a" * 8, "b" * 32))
    assert [batches[0], batches[5]] == [["a" * 8], ["b" * 32] * 16]
    assert {(len(items), len(items[0])) for items in batches} == {(n, length) for n in (1, 4, 16) for length in (8, 32)}
    assert set(measured) >= {(1, 8), (16, 32)}


def test_one_long_example_is_cropped_where_the_batcher_can(start: StartEngine, front: FakeFront) -> None:
    shapes: set[tuple[int, ...]] = set()

    def predict(batch: Any) -> Any:
        shapes.add(batch.shape)
        return batch

    start(with_examples(FakeModel(predict=predict, batcher=PadBatcher(), max_batch_size=4), np.zeros(64)))
    assert shapes >= {(4, 64), (1, 8), (1, 64), (4, 8)}


def test_warming_up_takes_the_time_it_may_and_no_more(start: StartEngine, front: FakeFront) -> None:
    times = iter(range(0, 100_000, 4))
    runs: list[Any] = []

    def predict(items: list[Any]) -> list[Any]:
        runs.append(items)
        return items

    model = with_examples(FakeModel(predict=predict, max_batch_size=64), 1)
    start(model, options=WorkerOptions(warm_up_s=30.0), clock=lambda: float(next(times)))
    assert 0 < len(runs) < 4
    start(model, options=WorkerOptions(warm_up_s=0.0))
    assert len(runs) < 4


def test_an_example_too_large_for_the_memory_lowers_the_ceiling(start: StartEngine, front: FakeFront) -> None:
    def predict(items: list[Any]) -> list[Any]:
        if len(items) > 4:
            raise MemoryError
        return items

    engine = start(with_examples(FakeModel(predict=predict, max_batch_size=16), 1))
    ceiling = engine.figures("double")["token_ceiling"]
    assert 1 <= ceiling < 16


def answer_with_an_error(_: Any) -> Any:
    return ValueError("the text is too long")


def fail(_: Any) -> Any:
    raise ValueError("the text is too long")


@pytest.mark.parametrize("model", [FakeModel(preprocess=answer_with_an_error), FakeModel(predict=fail)])
def test_an_engine_whose_examples_cannot_be_run_does_not_start(model: FakeModel, front: FakeFront) -> None:
    engine = Engine({"double": with_examples(model, 1)}, front, WorkerOptions())
    with pytest.raises(BatchFailed, match=r"Task double: .*example.*the text is too long"):
        engine.load()
