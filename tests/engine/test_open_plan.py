"""When the next batch is put together, and when it is opened again, without threads."""

from typing import Any

import pytest
from batchery.batchers import Batch, Job
from batchery.configs import TaskOptions
from batchery.worker.engine.job_table import TaskState
from batchery.worker.engine.open_plan import OpenPlan
from batchery.worker.engine.scheduler import NEVER, Scheduler

NOW = 100.0


def plan_of(ms: float, **options: Any) -> tuple[OpenPlan, Scheduler]:
    """A plan for one task, whose batches of one are known to take `ms` milliseconds."""
    task = TaskState.create(TaskOptions(**{"max_batch_size": 1, **options}), 1000)
    for _ in range(5):
        task.cost.observe(1, None, ms)
    scheduler = Scheduler({"a": task})
    return OpenPlan(scheduler), scheduler


def job(seq: int, priority: int = 0) -> Job:
    return Job(str(seq), "a", (), {}, None, NOW, seq, priority)


def come(plan: OpenPlan, *jobs: Job) -> None:
    plan._scheduler.claimed(jobs)
    plan._scheduler.prepared(jobs, NOW)
    plan.work_came(jobs)


def start(plan: OpenPlan) -> Batch:
    batch = plan._scheduler.next_batch(NOW)
    assert batch is not None
    plan._scheduler.started(batch, NOW)
    plan.expect()
    return batch


@pytest.mark.parametrize("there_already", [True, False])
@pytest.mark.parametrize(("ms", "ahead_s"), [(1000, 0.8), (2, None)])
def test_the_next_batch_is_put_together_just_in_time_where_that_is_worth_a_thread(
    ms: float, ahead_s: float | None, there_already: bool
) -> None:
    plan, scheduler = plan_of(ms)
    for _ in range(40):
        plan.collated(None, None, 0.1)
    come(plan, job(0), *([job(1)] if there_already else []))
    batch = start(plan)
    if not there_already:
        assert not plan.collates_ahead
        come(plan, job(1))
    assert plan.collates_ahead is (ahead_s is not None)
    assert plan.collate_at == (pytest.approx(NOW + ahead_s, abs=1e-3) if ahead_s else NEVER)
    scheduler.move("ran", batch.jobs)
    batch.finished_at = NOW + 1
    scheduler.finished(batch, whole=True, more=False)
    plan.finished()
    assert not plan.collates_ahead


def test_a_batch_that_was_put_together_runs_next() -> None:
    plan, _ = plan_of(1000)
    come(plan, job(0), job(1))
    start(plan)
    assert plan.choose(NOW) is None, "it is too early"
    batch = plan.choose(NOW + 1)
    assert batch is not None
    assert plan.collating
    plan.collated(batch, None, 0.01)
    assert plan.has_next
    assert not plan.collating
    ready = plan.take_ready()
    assert ready is not None
    assert ready.batch is batch
    assert not plan.has_next


@pytest.mark.parametrize("when", ["while it is put together", "when it is ready"])
@pytest.mark.parametrize("priority", [0, 9])
def test_only_a_more_urgent_job_opens_the_next_batch_again(when: str, priority: int) -> None:
    plan, scheduler = plan_of(1000)
    come(plan, job(0), job(1, priority=3))
    start(plan)
    batch = plan.choose(NOW + 1)
    assert batch is not None
    if when == "when it is ready":
        plan.collated(batch, None, 0.01)
    come(plan, job(2, priority))
    if when != "when it is ready":
        plan.collated(batch, None, 0.01)
    ready = plan.take_ready()
    assert (ready is None) is (priority == 0)
    if priority == 0:
        chosen = scheduler.next_batch(NOW)
        assert chosen is not None
        assert [job.seq for job in chosen.jobs] == [2]
