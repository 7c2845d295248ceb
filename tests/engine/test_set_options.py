"""A running engine's options may change: from the next batch, and the next claim, the new ones hold."""

from __future__ import annotations

from batchery.batchers import GreedyPlanner
from batchery.configs import TaskOptions

from tests.support.fakes import FakeModel, FakePorts, Held, Jobs, StartEngine


def test_the_next_batch_has_the_new_size(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=2))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    ports.put(*jobs.many(1, 2, 3, 4, 5))
    ports.wait_until_all_are_claimed()
    engine.set_options("double", TaskOptions(max_batch_size=4))
    held.gate.open()
    ports.wait_for_outcomes(6)
    assert held.batches == [[0], [1, 2, 3, 4], [5]]


def test_a_batch_that_waits_for_more_jobs_runs_once_its_wait_is_removed(
    start: StartEngine, ports: FakePorts, jobs: Jobs
) -> None:
    engine = start(FakeModel(max_wait_ms=1e9))
    ports.put(*jobs.many(1, 2))
    ports.wait_until_all_are_claimed()
    assert ports.answers() == {}
    engine.set_options("double", TaskOptions())
    ports.wait_for_outcomes(2)


def test_more_jobs_are_claimed_where_batches_become_larger(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    engine = start(FakeModel(predict=held, max_batch_size=1, look_ahead=1))
    ports.put(*jobs.many(*range(30)))
    held.gate.wait_until_reached()
    ports.wait_for(lambda: len(ports.claimed) == 4, "as many are claimed as may be held")
    engine.set_options("double", TaskOptions(max_batch_size=29))
    ports.wait_until_all_are_claimed()
    held.gate.open()
    ports.wait_for_outcomes(30)
    assert held.batches == [[0], [*range(1, 30)]]


def test_a_batch_that_runs_hangs_by_the_new_time_limit(start: StartEngine, ports: FakePorts, jobs: Jobs) -> None:
    held = Held()
    engine = start(FakeModel(predict=held))
    ports.put(jobs(0))
    held.gate.wait_until_reached()
    assert not engine.state.hung
    engine.set_options("double", TaskOptions(batch_time_limit_s=1e-9))
    assert engine.state.hung
    held.gate.open()


def test_small_requests_go_first_once_a_threshold_is_set(jobs: Jobs) -> None:
    planner = GreedyPlanner(TaskOptions(max_batch_size=1))
    waiting = jobs.many("long", length=90) + jobs.many("short", length=3)
    first = planner.choose(waiting, now=0.0)
    assert first is not None
    assert first.jobs == waiting[:1]
    planner.set_options(TaskOptions(max_batch_size=1, small_batch_threshold=5))
    first = planner.choose(waiting, now=0.0)
    assert first is not None
    assert first.jobs == waiting[1:]
