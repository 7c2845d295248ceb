"""While a batch runs, the next one is put together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from batchery.worker.engine import Engine

from tests.support.fakes import (
    DEADLINE_S,
    FakeModel,
    FakePorts,
    Gate,
    Held,
    Jobs,
    StartEngine,
    ids,
    in_background,
)


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
    monkeypatch.setattr("batchery.worker.tuning.WORTH_COLLATING_AHEAD_S", 0.0)
    return start


def test_the_next_batch_is_put_together_while_one_runs(ahead: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held, batcher = Held(), Recorded()
    engine = ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, 3))
    batcher.wait_for([0], [1, 2])
    assert held.batches == [[0]]
    assert ids(engine.state.running) == ["double-0"]
    held.gate.open()
    ports.wait_for_outcomes(4)
    assert ports.answers() == {f"double-{n}": n * 2 for n in range(4)}
    batcher.wait_for([0], [1, 2], [3])


def test_a_batch_put_together_ahead_goes_back_in_order_when_the_engine_drains(
    ahead: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held, batcher = Held(), Recorded()
    engine = ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, 3))
    batcher.wait_for([0], [1, 2])
    ports.wait_until_all_are_claimed()
    drained = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: len(ports.given_back) == 3, "what does not run is given back")
    held.gate.open()
    assert drained.result(DEADLINE_S)
    assert ids(ports.given_back) == ["double-1", "double-2", "double-3"]
    assert ports.answers() == {"double-0": 0}


def test_a_batch_that_is_being_put_together_goes_back_in_order_too(
    ahead: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held, batcher = Held(), Recorded()
    engine = ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    batcher.gate = Gate()
    ports.put(*jobs.many(1, 2, 3))
    batcher.wait_for([0], [1, 2])
    ports.wait_until_all_are_claimed()
    drained = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: ports.interrupts, "the engine drains")
    batcher.gate.open()
    held.gate.open()
    assert drained.result(DEADLINE_S)
    assert ids(ports.given_back) == ["double-1", "double-2", "double-3"]


def test_a_job_that_cannot_be_put_together_with_others_fails_alone(
    ahead: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    class Picky(Recorded):
        def batch(self, items: Sequence[Any]) -> tuple[list[Any], None]:
            if 2 in items:
                raise ValueError("two does not go with others, nor alone")
            return super().batch(items)

    held = Held()
    ahead(FakeModel(predict=held, batcher=Picky(), max_batch_size=3))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, 3))
    ports.wait_until_all_are_claimed()
    held.gate.open()
    ports.wait_for_outcomes(4)
    answers = ports.answers()
    assert isinstance(answers.pop("double-2"), ValueError)
    assert answers == {"double-0": 0, "double-1": 2, "double-3": 6}


def test_a_batch_put_together_ahead_does_not_run_if_nobody_wants_it(
    ahead: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held = Held()
    ports.unwanted = {"double-1", "double-2"}
    ahead(FakeModel(predict=held, max_batch_size=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, 3))
    ports.wait_until_all_are_claimed()
    held.gate.open()
    ports.wait_for_outcomes(2)
    assert held.batches == [[0], [3]]


def test_a_batch_that_may_still_grow_is_not_put_together_ahead(
    ahead: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held, batcher = Held(), Recorded()
    ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=3))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    for value in (1, 2):
        ports.put(jobs(value))
        ports.wait_until_all_are_claimed()
    assert batcher.collated == [[0]]
    ports.put(jobs(3))
    batcher.wait_for([0], [1, 2, 3])
    held.gate.open()


def test_a_more_urgent_job_opens_a_batch_that_was_put_together(
    ahead: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held, batcher = Held(), Recorded()
    ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2, max_age_ms=float("inf")))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, priority=9))
    batcher.wait_for([0], [1, 2])
    ports.put(jobs(3, priority=0))
    batcher.wait_for([0], [1, 2], [3, 1])
    held.gate.open()
    ports.wait_for_outcomes(4)
    assert held.batches == [[0], [3, 1], [2]]


def test_a_cancelled_job_is_left_out_of_a_batch_that_was_put_together(
    ahead: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held, batcher = Held(), Recorded()
    ahead(FakeModel(predict=held, batcher=batcher, max_batch_size=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2))
    batcher.wait_for([0], [1, 2])
    ports.unwanted = {"double-1"}
    held.gate.open()
    ports.wait_for_outcomes(2)
    assert held.batches == [[0], [2]]
