"""The planner's order of service: age before deadlines, deadlines before priorities, small jobs before others."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from batchery.batchers.job import ClosedBy, Job
from batchery.batchers.planning.cost import CostFunction
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.planning import chosen, job, planner


def takes(launch_ms: float, job_ms: float = 0.0, token_ms: float = 0.0) -> CostFunction:
    """The milliseconds that a device takes for a batch."""

    def cost(sizes: NDArray[np.int64], longest: NDArray[np.int64], /) -> NDArray[np.float64]:
        return np.asarray(launch_ms + job_ms * sizes + token_ms * sizes * longest, dtype=np.float64)

    return cost


# -- Deadlines ---------------------------------------------------------------------------------------------------------

# In these tests a batch of one job takes 100 ms.


@pytest.mark.parametrize("length", [None, 5])
@pytest.mark.parametrize(("deadline", "first"), [(0.05, 0), (0.15, 1), (0.25, 0), (None, 0)])
def test_a_job_goes_first_if_it_would_be_late_after_the_batch_before_it(
    length: int | None, deadline: float | None, first: int
) -> None:
    waiting = [job(0, length), job(1, length, deadline=deadline)]
    batch = planner(takes(100), max_batch_size=1).choose(waiting, 0.0)
    assert chosen(batch) == [first]


def test_a_deadline_at_risk_is_kept_across_shape_classes_and_before_priorities() -> None:
    waiting = [job(0, 5, shape_class="a"), job(1, 5, shape_class="b", priority=9, deadline=0.15)]
    batch = planner(takes(100)).choose(waiting, 0.0)
    assert chosen(batch) == [1]
    assert batch is not None
    assert batch.closed_by == "deadline"


def test_of_several_deadlines_at_risk_the_earliest_goes_first() -> None:
    waiting = [job(0), job(1, deadline=0.18), job(2, deadline=0.12), job(3, deadline=0.15)]
    assert chosen(planner(takes(100), max_batch_size=1).choose(waiting, 0.0)) == [2]


def test_a_lost_deadline_does_not_prevent_another_from_being_kept() -> None:
    waiting = [job(0), job(1, deadline=0.05), job(2, deadline=0.15), job(3, deadline=-1.0)]
    assert chosen(planner(takes(100), max_batch_size=1).choose(waiting, 0.0)) == [2]


# The first version made batches smaller because of deadlines. With more work than the device could do, and all of it
# expiring, it soon ran batches of one.
@pytest.mark.parametrize("length", [None, 5])
def test_in_overload_batches_stay_full_though_every_job_will_expire(length: int | None) -> None:
    busy = planner(takes(50, job_ms=1), max_batch_size=16)
    waiting: list[Job] = []
    now, made, sizes = 0.0, 0, []
    for _ in range(30):
        for _ in range(24):
            waiting.append(job(made, length, enqueued_at=now, deadline=now + 0.4))
            made += 1
        batch = busy.choose(waiting, now)
        assert batch is not None
        sizes.append(len(batch.jobs))
        now += 0.066
        ran = set(chosen(batch))
        waiting = [job for job in waiting if job.seq not in ran and (job.deadline or 0.0) > now]
    assert set(sizes) == {16}


def test_a_deadline_that_is_not_at_risk_changes_nothing() -> None:
    waiting = [job(seq, 5, deadline=60.0) for seq in range(4)]
    batch = planner(takes(10)).choose(waiting, 0.0)
    assert batch is not None
    assert chosen(batch) == [0, 1, 2, 3]
    assert batch.closed_by == "nothing left"


def test_the_age_bound_comes_before_deadlines() -> None:
    waiting = [job(0, enqueued_at=1.5, deadline=2.15), job(1, enqueued_at=0.9)]
    fair = planner(takes(100), max_age_ms=1000, max_batch_size=1)
    assert chosen(fair.choose(waiting, 1.8)) == [0]
    batch = fair.choose(waiting, 2.0)
    assert chosen(batch) == [1]
    assert batch is not None
    assert batch.closed_by == "full"


def test_a_batch_stops_waiting_for_more_jobs_before_a_deadline_is_lost() -> None:
    patient = planner(takes(100), max_wait_ms=500)
    waiting = [job(0), job(1, deadline=0.4)]
    assert patient.due_at(waiting) == pytest.approx(0.3)
    assert patient.choose(waiting, 0.299) is None
    assert chosen(patient.choose(waiting, patient.due_at(waiting))) == [0, 1]


# -- Small jobs --------------------------------------------------------------------------------------------------------


def test_jobs_within_the_threshold_go_before_longer_ones_of_their_priority() -> None:
    waiting = [job(0, 90), job(1, 8), job(2, 90, priority=1), job(3, 5, priority=1)]
    quick = planner(small_batch_threshold=8, max_batch_size=1)
    order = []
    while waiting:
        order += chosen(quick.choose(waiting, 0.0))
        waiting = [job for job in waiting if job.seq != order[-1]]
    assert order == [1, 0, 3, 2]


def test_small_jobs_go_first_within_the_age_bound_only() -> None:
    waiting = [job(0, 90), job(1, 8, enqueued_at=1.5)]
    quick = planner(small_batch_threshold=8, max_batch_size=1, max_age_ms=1000)
    assert chosen(quick.choose(waiting, 0.9)) == [1]
    assert chosen(quick.choose(waiting, 1.0)) == [0]


# -- No starvation -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_an_old_job_runs_after_at_most_as_many_batches_as_jobs_are_before_it_in_claim_order(data: Any) -> None:
    """An adversary chooses the arrivals: more urgent, shorter and more important jobs than those that wait."""
    fair = planner(
        takes(20, 1, 0.1),
        max_age_ms=1000,
        max_batch_size=data.draw(st.integers(1, 4)),
        small_batch_threshold=data.draw(st.sampled_from([None, 8])),
    )
    arrival = st.tuples(st.integers(0, 9), st.integers(0, 80), st.integers(0, 1), st.floats(0.0, 0.5))
    waiting: list[Job] = [job(0, 80, priority=9, shape_class=1)]
    # Batches that may still run before it does, for each job that is old.
    left: dict[int, int] = {}
    now, made = 0.0, 1
    for _ in range(25):
        for priority, length, kind, slack in data.draw(st.lists(arrival, min_size=2, max_size=5)):
            waiting.append(
                job(made, length, priority=priority, shape_class=kind, enqueued_at=now, deadline=now + slack)
            )
            made += 1
        for place, waiting_job in enumerate(waiting):
            if waiting_job.enqueued_at <= now - 1:
                left.setdefault(waiting_job.seq, place)
        batch = fair.choose(waiting, now)
        assert batch is not None
        assert batch.closed_by in get_args(ClosedBy)
        ran = set(chosen(batch))
        waiting = [job for job in waiting if job.seq not in ran]
        for seq in left.keys() - ran:
            left[seq] -= 1
        left = {seq: batches for seq, batches in left.items() if seq not in ran}
        assert all(batches >= 0 for batches in left.values())
        now += data.draw(st.floats(0.05, 0.4))


@pytest.mark.parametrize("length", [None, 80])
def test_a_job_that_all_others_overtake_runs_once_it_has_waited_max_age_ms(length: int | None) -> None:
    fair = planner(takes(100), max_age_ms=1000, max_batch_size=1)
    waiting = [job(0, length, priority=9)]
    now = 0.0
    for seq in range(1, 30):
        waiting.append(job(seq, length and 1, enqueued_at=now, deadline=now + 0.15))
        (ran,) = chosen(fair.choose(waiting, now))
        waiting = [job for job in waiting if job.seq != ran]
        if ran == 0:
            break
        now += 0.125
    assert now == 1.0
