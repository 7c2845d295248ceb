"""From claim to settle: what becomes of jobs on their way through the engine's threads."""

from __future__ import annotations

import time

from tests.support.fakes import (
    DEADLINE_S,
    FakeModel,
    FakePorts,
    Held,
    Jobs,
    StartEngine,
    ids,
)


def test_every_job_gets_the_answer_to_its_own_input(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    start(FakeModel(max_batch_size=4))
    ports.put(*jobs.many(*range(100)))
    ports.wait_for_outcomes(100)
    assert ports.answers() == {f"double-{n}": n * 2 for n in range(100)}
    assert len(ports.outcomes) == 100


def test_jobs_run_in_the_order_of_their_claims(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    start(FakeModel(predict=held, max_batch_size=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, 3))
    ports.put(*jobs.many(4, 5))
    ports.wait_until_all_are_claimed()
    held.gate.open()
    ports.wait_for_outcomes(6)
    assert [item for batch in held.batches for item in batch] == [0, 1, 2, 3, 4, 5]
    assert ids([outcome.job for outcome in ports.outcomes]) == [f"double-{n}" for n in range(6)]


def test_jobs_that_come_while_a_batch_runs_share_the_next_one(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    start(FakeModel(predict=held))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    for number in range(1, 6):
        ports.put(jobs(number))
    ports.wait_until_all_are_claimed()
    held.gate.open()
    ports.wait_for_outcomes(6)
    assert held.batches == [[0], [1, 2, 3, 4, 5]]


def test_no_more_is_claimed_than_may_be_held(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    start(FakeModel(predict=held, max_batch_size=4, look_ahead=2))
    ports.put(*jobs.many(*range(200)))
    ports.wait_for(lambda: len(ports.claimed) == 4 * 2 + 3 * 4, "as many as may be are claimed")
    held.gate.wait_until_reached()
    assert sum(ports.limits) == 20
    held.gate.open()
    ports.wait_for_outcomes(200)
    assert max(ports.limits) <= 20


def test_a_batch_that_is_not_full_runs_when_its_wait_is_over(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    start(FakeModel(max_wait_ms=20))
    ports.put(jobs(1, enqueued_at=time.monotonic()))
    ports.wait_for_outcomes(1)


def test_a_batch_that_is_full_does_not_wait(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    start(FakeModel(max_wait_ms=1e9, max_batch_size=2))
    ports.put(*jobs.many(1, 2, enqueued_at=time.monotonic()))
    ports.wait_for_outcomes(2)
    assert ports.batches == [["double-1", "double-2"]]


def test_the_device_goes_to_the_task_with_the_oldest_due_job(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    waits = FakeModel("waits", max_wait_ms=1e9, max_batch_size=2)
    start(FakeModel("a", predict=held), FakeModel("b", predict=held), waits)
    ports.put(jobs(0, "a"))
    held.gate.wait_until_reached()
    ports.put(jobs(1, "waits", enqueued_at=time.monotonic()))
    ports.put(jobs(2, "b"), jobs(3, "a"), jobs(4, "b"), jobs(5, "a"))
    ports.wait_until_all_are_claimed()
    held.gate.open()
    ports.wait_for_outcomes(5)
    assert ports.batches == [["a-0"], ["b-2", "b-4"], ["a-3", "a-5"]]
    ports.put(jobs(6, "waits", enqueued_at=time.monotonic()))
    ports.wait_for_outcomes(7)
    assert ports.batches[-1] == ["waits-1", "waits-6"]


def test_cancelled_jobs_do_not_run(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    ports.unwanted = {"double-1", "double-3", "double-4"}
    engine = start(FakeModel(max_batch_size=3))
    ports.put(*jobs.many(0, 1, 2, 3, 4, 5))
    ports.wait_for_outcomes(3)
    assert ports.answers() == {"double-0": 0, "double-2": 4, "double-5": 10}
    assert engine.drain(DEADLINE_S)
    assert engine.stats()["held"] == 0


def test_a_batch_of_cancelled_jobs_does_not_run(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    ports.unwanted = {"double-1"}
    start(FakeModel(max_batch_size=1))
    ports.put(*jobs.many(1, 2))
    ports.wait_for_outcomes(1)
    assert ports.batches == [["double-2"]]


def test_jobs_may_be_submitted_instead_of_claimed(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    engine = start(FakeModel(preprocess=abs))
    engine.state.submit([])
    engine.state.submit(jobs.many(-1, -2))
    ports.wait_for_outcomes(2)
    assert ports.answers() == {"double--1": 2, "double--2": 4}
