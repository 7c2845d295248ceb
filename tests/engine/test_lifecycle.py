"""Draining, and what happens when the engine itself breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from batchery.batchers import Batch, BatchFailed, Job

from tests.support.fakes import (
    DEADLINE_S,
    FakeModel,
    FakePorts,
    Gate,
    Held,
    Jobs,
    StartEngine,
    engine_of,
    engine_threads,
    ids,
    in_background,
    wait_until_gone,
)


def test_draining_gives_back_waiting_jobs_in_order_and_finishes_the_running_batch(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=2))
    ports.put(*jobs.many(*range(7)))
    held.gate.wait_until_reached()
    done = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: len(ports.given_back) == 5, "five are given back")
    assert not done.done()
    held.gate.open()
    assert done.result(DEADLINE_S)
    assert ids(ports.given_back) == [f"double-{n}" for n in range(2, 7)]
    assert ports.answers() == {"double-0": 0, "double-1": 2}
    assert engine.stats()["held"] == 0


def test_draining_gives_back_preparing_and_waiting_jobs_together_and_in_order(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held, gate = Held(), Gate()

    def preprocess(item: int) -> int:
        if item == 1:
            gate.pass_through()
        return item

    engine = start(FakeModel(predict=held, preprocess=preprocess, preprocess_threads=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, 3, 4))
    gate.wait_until_reached()
    done = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: ports.interrupted, "the drain has begun")
    gate.open()
    ports.wait_for(lambda: len(ports.given_back) == 4, "four are given back")
    assert ids(ports.given_back) == [f"double-{n}" for n in (1, 2, 3, 4)]
    held.gate.open()
    assert done.result(DEADLINE_S)


def test_jobs_claimed_while_the_drain_begins_are_given_back(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    engine = start(FakeModel(preprocess=abs))
    ports.may_claim.clear()
    ports.put(*jobs.many(1, 2))
    ports.wait_for(lambda: ports.claimed, "they are claimed")
    done = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: ports.interrupted, "the drain has begun")
    ports.may_claim.set()
    assert done.result(DEADLINE_S)
    assert sorted(ids(ports.given_back)) == ["double-1", "double-2"]
    assert ports.outcomes == []


def test_a_drain_gives_up_on_a_model_that_hangs(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=1))
    ports.put(*jobs.many(1, 2))
    held.gate.wait_until_reached()
    assert not engine.drain(0.01)
    assert ids(ports.given_back) == ["double-2"]
    assert ids(engine.state.running) == ["double-1"]
    held.gate.open()
    ports.wait_for_outcomes(1)
    wait_until_gone(*engine_threads())
    assert engine.drain(DEADLINE_S)


def test_a_drain_gives_up_on_a_preprocess_that_hangs_but_gives_back_waiting_jobs(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held, gate = Held(), Gate()

    def preprocess(item: int) -> int:
        if item == 1:
            gate.pass_through()
        return item

    engine = start(FakeModel(predict=held, preprocess=preprocess, max_batch_size=1))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(jobs(1))
    gate.wait_until_reached()
    ports.put(jobs(2))
    ports.wait_until_all_are_claimed()
    held.gate.open()
    ports.wait_for_outcomes(1)
    assert not engine.drain(0.01)
    gate.open()
    ports.wait_for(lambda: len(ports.given_back) + len(ports.outcomes) == 3, "each is given back or answered")
    assert "double-1" in ids(ports.given_back)


def test_a_drained_engine_takes_no_submitted_jobs(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    engine = start(FakeModel("quick"), FakeModel("slow", preprocess=abs))
    assert engine.drain(DEADLINE_S)
    assert not engine.state.submit([jobs(1, "quick"), jobs(2, "slow")])
    assert engine.stats()["held"] == 0


def test_submitted_jobs_that_are_not_prepared_go_back_when_the_engine_drains(ports: FakePorts, jobs: Jobs) -> None:
    engine = engine_of(FakeModel(preprocess=abs), ports)
    assert engine.state.submit(jobs.many(1, 2))
    assert engine.drain(DEADLINE_S)
    assert ids(ports.given_back) == ["double-1", "double-2"]


def test_draining_twice_does_no_harm(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    engine = start(FakeModel(preprocess=abs))
    ports.put(jobs(1))
    ports.wait_for_outcomes(1)
    assert engine.drain(DEADLINE_S)
    assert engine_threads() == []
    assert engine.drain(DEADLINE_S)


def test_draining_from_two_threads_gives_back_every_job_once(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held, gate = Held(), Gate()

    def preprocess(item: int) -> int:
        if item == 1:
            gate.pass_through()
        return item

    engine = start(FakeModel(predict=held, preprocess=preprocess))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(jobs(1))
    gate.wait_until_reached()
    ports.put(*jobs.many(2, 3, 4))
    ports.wait_until_all_are_claimed()
    first = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: ports.interrupts == 1, "the first drain has begun")
    second = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: ports.interrupts == 2, "the second drain has begun")
    gate.open()
    held.gate.open()
    assert first.result(DEADLINE_S)
    assert second.result(DEADLINE_S)
    assert sorted(ids(ports.given_back)) == [f"double-{n}" for n in (1, 2, 3, 4)]


def test_an_engine_that_was_not_started_can_be_drained(ports: FakePorts) -> None:
    assert engine_of(FakeModel(), ports).drain(DEADLINE_S)


def test_a_model_that_cannot_be_loaded_says_so_before_anything_is_claimed(ports: FakePorts) -> None:
    class Broken(FakeModel):
        def ensure_loaded(self, device: str = "auto") -> str:
            raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        engine_of(Broken(), ports).load()
    assert ports.limits == []


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(2)], ids=repr)
@pytest.mark.parametrize("method", ["claim", "drop_cancelled", "started"])
def test_a_source_or_sink_that_raises_is_told_that_the_engine_is_broken(
    method: str, error: BaseException, start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    ports.failing = {method: error}
    engine = start(FakeModel(max_batch_size=1))
    ports.put(*jobs.many(1, 2))
    ports.wait_for(lambda: ports.broken_by, "the ports is told")
    assert repr(error) in repr(ports.broken_by)
    engine.drain(DEADLINE_S)
    assert len(ports.given_back) + len(ports.line) == (2 if method == "claim" else 1)


class BrokenPlanner:
    """Raises when it is asked."""

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        raise ZeroDivisionError

    def due_at(self, waiting: Sequence[Job]) -> float:
        return 0.0

    def set_options(self, options: Any) -> None:
        pass


def test_a_planner_that_raises_breaks_the_engine_instead_of_hanging_it(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    engine = start(FakeModel(), planners={"double": BrokenPlanner()})
    ports.put(*jobs.many(1, 2))
    ports.wait_for(lambda: ports.broken_by, "the ports is told")
    assert isinstance(ports.broken_by[0], ZeroDivisionError)
    assert engine.drain(DEADLINE_S)
    assert ids(ports.given_back) == ["double-1", "double-2"]


def test_the_running_batch_still_finishes_when_claiming_breaks(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=1))
    ports.put(*jobs.many(1, 2))
    held.gate.wait_until_reached()
    ports.failing = {"claim": RuntimeError("broken")}
    ports.put(jobs(3))
    ports.wait_for(lambda: ports.broken_by, "the ports is told")
    done = in_background(engine.drain, DEADLINE_S)
    ports.wait_for(lambda: len(ports.given_back) == 2, "the others are given back")
    held.gate.open()
    assert done.result(DEADLINE_S)
    assert ports.answers() == {"double-1": 2}


def test_a_drain_does_not_wait_for_outcomes_that_nobody_settles_any_more(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    ports.failing = {"settle": SystemExit(1)}
    engine = start(FakeModel())
    ports.put(jobs(1))
    ports.wait_for(lambda: ports.broken_by, "the ports is told")
    assert isinstance(ports.broken_by[0], BatchFailed)
    assert not engine.drain(1e6)


def test_a_broken_engine_claims_nothing_more(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    ports.failing = {"started": RuntimeError("broken")}
    start(FakeModel(max_batch_size=1))
    (claim_thread,) = [thread for thread in engine_threads() if thread.name == "batchery-claim"]
    ports.put(jobs(1))
    wait_until_gone(claim_thread)
    ports.put(jobs(2))
    assert ids(ports.claimed) == ["double-1"]
