"""Settling: in order, together, and without keeping others waiting."""

from __future__ import annotations

import threading

import pytest
from batchery.worker.engine.settler import NotStored

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
from tests.support.waiting import wait_until


def test_outcomes_that_cannot_be_stored_hold_up_nobody_else(
    start: StartEngine, ports: FakePorts, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    ports.failing = {"settle": ConnectionError("gone")}
    engine = start(FakeModel(max_batch_size=1))
    for value in (1, 2):
        ports.put(jobs(value))
        ports.wait_for_outcomes(value)
    assert engine.drain(DEADLINE_S)
    assert ports.broken_by == []
    assert "1 outcomes could not be stored" in caplog.text


def test_results_that_wait_to_be_stored_hold_up_the_device(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    gate = Gate()

    def postprocess(output: int) -> int:
        gate.pass_through()  # on the settle thread
        return output

    engine = start(FakeModel(postprocess=postprocess, max_batch_size=40, look_ahead=4))
    ports.put(*jobs.many(*range(200)))
    ports.wait_until_all_are_claimed()
    ports.wait_for(lambda: len(ports.batches) == 2, "the results of two batches wait")
    waiting = 200 - sum(map(len, ports.batches))
    drained = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: ports.given_back, "what has not run is given back")
    assert ids(ports.given_back) == [f"double-{n}" for n in range(200 - waiting, 200)]
    gate.open()
    assert drained.result(DEADLINE_S)
    assert ports.answers() == {f"double-{n}": 2 * n for n in range(200 - waiting)}


def test_outcomes_that_arrive_during_a_settle_are_settled_together(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    gate = Gate()

    def postprocess(output: int) -> int:
        gate.pass_through()
        return output

    engine = start(FakeModel("one", postprocess=postprocess, max_batch_size=1), FakeModel("two", max_batch_size=2))
    ports.put(jobs(1, task="one"))
    gate.wait_until_reached()
    ports.put(jobs(2, task="two"))
    ports.wait_for(lambda: len(ports.batches) == 2, "the next batch runs")
    wait_until(lambda: not engine.state.running, "it is through")
    ports.put(jobs(3, task="two"))
    ports.wait_for(lambda: len(ports.batches) == 3, "one more runs")
    wait_until(lambda: not engine.state.running, "it is through")
    gate.open()
    ports.wait_for_outcomes(3)
    assert engine.drain(DEADLINE_S)
    assert ports.answers() == {"one-1": 2, "two-2": 4, "two-3": 6}
    assert ports.settlements == 2, "the second and the third batch are settled together"


def test_large_batches_that_take_no_time_are_settled_where_they_ran(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    threads: set[str] = set()

    def postprocess(output: int) -> int:
        threads.add(threading.current_thread().name)
        return output

    start(FakeModel(postprocess=postprocess, max_batch_size=64), clock=lambda: 0.0)
    ports.put(*jobs.many(*range(640)))
    ports.wait_for_outcomes(640)
    assert "batchery-device" in threads
    assert ports.answers() == {f"double-{n}": 2 * n for n in range(640)}


def test_the_device_goes_on_when_results_are_stored(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    gate = Gate()

    def postprocess(output: int) -> int:
        gate.pass_through()
        return output

    start(FakeModel(postprocess=postprocess, max_batch_size=40, look_ahead=4))
    ports.put(*jobs.many(*range(200)))
    ports.wait_until_all_are_claimed()
    ports.wait_for(lambda: len(ports.batches) == 2, "the results of two batches wait")
    gate.open()
    ports.wait_for_outcomes(200)
    assert ports.answers() == {f"double-{n}": 2 * n for n in range(200)}


def test_an_outcome_that_the_sink_refuses_fails_alone(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    ports.refuses = lambda outcome: outcome.value == 6
    start(FakeModel(predict=held, max_batch_size=8))
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    held.gate.open()
    ports.wait_for(lambda: set(ports.answers()) == {f"double-{n}" for n in range(1, 6)}, "all are answered")
    answers = ports.answers()
    assert isinstance(answers.pop("double-3"), NotStored)
    assert answers == {f"double-{n}": 2 * n for n in (1, 2, 4, 5)}
    assert ports.broken_by == []
