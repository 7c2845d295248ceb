"""The planner: which waiting jobs run together, and when. The tests choose the time."""

import time
from typing import Any

import numpy as np
import pytest
from batchery.batchers.job import Job
from batchery.batchers.planning.cost import CostModel
from batchery.batchers.planning.token_ceiling import TokenCeiling
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.planning import chosen, job, jobs_of, linear_cost, planner, rounds

property_test = settings(deadline=None, max_examples=150)


# -- When --------------------------------------------------------------------------------------------------------------


def test_no_batch_is_chosen_if_no_job_waits() -> None:
    assert planner().choose([], 0.0) is None
    assert planner().due_at([]) == float("inf")


@pytest.mark.parametrize("length", [None, 5])
def test_a_lone_job_runs_at_once(length: int | None) -> None:
    assert chosen(planner().choose([job(0, length)], 0.0)) == [0]
    assert planner().due_at([job(0, length, enqueued_at=3.0)]) == 3.0


def test_a_batch_that_could_grow_waits_for_max_wait_ms_and_no_longer() -> None:
    patient = planner(max_wait_ms=500)
    waiting = [job(0), job(1, enqueued_at=0.2)]
    assert patient.choose(waiting, 0.499) is None
    assert patient.due_at(waiting) == 0.5
    assert chosen(patient.choose(waiting, 0.5)) == [0, 1]


def test_max_wait_ms_counts_from_enqueue_and_not_from_when_the_planner_is_first_asked() -> None:
    assert chosen(planner(max_wait_ms=500).choose([job(0, enqueued_at=-2.0)], 0.0)) == [0]


@pytest.mark.parametrize("lengths", [[None] * 4, [1, 2, 3, 4]])
def test_a_full_batch_does_not_wait(lengths: list[int | None]) -> None:
    patient = planner(max_wait_ms=500, max_batch_size=4)
    assert patient.choose(jobs_of(lengths[:3]), 0.0) is None
    assert chosen(patient.choose(jobs_of(lengths), 0.0)) == [0, 1, 2, 3]


def test_a_batch_whose_token_budget_is_used_up_does_not_wait() -> None:
    patient = planner(max_wait_ms=500, max_batch_tokens=100)
    assert patient.choose(jobs_of([50]), 0.0) is None
    assert chosen(patient.choose(jobs_of([50, 50]), 0.0)) == [0, 1]
    assert chosen(patient.choose(jobs_of([101]), 0.0)) == [0]


def test_a_batch_with_budget_left_waits_though_the_next_longer_job_would_not_fit() -> None:
    assert planner(max_wait_ms=500, max_batch_tokens=100).choose(jobs_of([10, 60]), 0.0) is None


def test_no_batch_waits_when_the_worker_holds_as_many_jobs_as_it_may() -> None:
    waiting = [job(seq, shape_class=seq) for seq in range(6)]
    patient = planner(max_wait_ms=500, max_batch_size=3, look_ahead=2)
    assert patient.choose(waiting[:5], 0.0) is None
    assert chosen(patient.choose(waiting, 0.0)) == [0]


# The first version told the engine to ask again at once and then had no batch, so the device thread would have spun.
@property_test
@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 2), st.integers(0, 1), st.integers(0, 90)), min_size=1),
    st.floats(0, 1000),
    st.booleans(),
)
def test_a_batch_that_could_grow_is_chosen_from_due_at_on_and_not_before(
    descriptions: list[tuple[float, int, int, int]], max_wait_ms: float, lengths: bool
) -> None:
    waiting = [
        job(seq, length if lengths else None, enqueued_at=at, priority=priority, shape_class=kind)
        for seq, (at, priority, kind, length) in enumerate(descriptions)
    ]
    patient = planner(max_wait_ms=max_wait_ms, max_batch_tokens=100)
    due_at = patient.due_at(waiting)
    assert patient.choose(waiting, due_at) is not None
    early = patient.choose(waiting, np.nextafter(due_at, -np.inf))
    assert early is None or max_wait_ms == 0 or early.closed_by in ("full", "budget")


# -- Which -------------------------------------------------------------------------------------------------------------


def test_jobs_without_lengths_run_in_the_order_in_which_they_were_claimed() -> None:
    batches = [chosen(batch) for batch in rounds(planner(max_batch_size=3), jobs_of([None] * 7))]
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_jobs_are_sorted_by_length() -> None:
    batch = planner().choose(jobs_of([7, 3, 5, 1]), 0.0)
    assert chosen(batch) == [3, 1, 2, 0]


def test_jobs_of_very_different_lengths_run_apart() -> None:
    batches = [chosen(batch) for batch in rounds(planner(linear_cost(launch=10)), jobs_of([900, 5, 905, 4]))]
    assert batches == [[0, 2], [3, 1]]


def test_jobs_run_together_where_a_launch_costs_more_than_the_padding() -> None:
    batches = [chosen(batch) for batch in rounds(planner(linear_cost(launch=10_000)), jobs_of([900, 5, 905, 4]))]
    assert batches == [[3, 1, 0, 2]]


def test_the_batch_contains_the_job_that_was_claimed_first_whatever_its_length() -> None:
    for oldest in (1, 40, 300):
        batch = planner(linear_cost(launch=1), max_batch_size=2).choose(jobs_of([oldest, 1, 2, 41, 300, 301]), 0.0)
        assert 0 in chosen(batch)


@pytest.mark.parametrize("lengths", [[None] * 4, [5] * 4])
def test_a_lower_priority_number_runs_first_and_equals_in_the_order_of_their_claims(lengths: list[int | None]) -> None:
    waiting = jobs_of(lengths)
    for waiting_job, priority in zip(waiting, (6, 3, 6, 3), strict=True):
        waiting_job.priority = priority
    batches = [chosen(batch) for batch in rounds(planner(max_batch_size=1), waiting)]
    assert batches == [[1], [3], [0], [2]]
    assert chosen(planner(max_batch_size=3).choose(waiting, 0.0)) == [1, 3, 0]


@pytest.mark.parametrize("length", [None, 5])
def test_a_job_above_the_age_bound_runs_before_any_priority(length: int | None) -> None:
    fair = planner(max_age_ms=1000, max_batch_size=1)
    waiting = [job(0, length, priority=9), job(1, length, enqueued_at=1.5)]
    assert chosen(fair.choose(waiting, 0.999)) == [1]
    assert chosen(fair.choose(waiting, 1.0)) == [0]


# The first version looked only at the job that was claimed first, which its priority had got claimed early.
def test_the_age_bound_holds_for_a_job_that_was_claimed_after_younger_ones() -> None:
    fair = planner(max_age_ms=1000, max_batch_size=1)
    waiting = [job(0, enqueued_at=5.0), job(1, priority=9), job(2, enqueued_at=5.0)]
    assert chosen(fair.choose(waiting, 5.5)) == [1]


@property_test
@given(st.lists(st.integers(0, 5)), st.integers(1, 4), st.sampled_from([0.0, 1.0, 40.0]))
def test_equally_long_jobs_run_in_the_order_of_their_claims(lengths: list[int], size: int, launch: float) -> None:
    places = {}
    for place, batch in enumerate(rounds(planner(linear_cost(launch), max_batch_size=size), jobs_of(lengths))):
        places.update(dict.fromkeys(chosen(batch), place))
    for length in set(lengths):
        order = [places[seq] for seq, other in enumerate(lengths) if other == length]
        assert order == sorted(order)


@property_test
@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 300))), min_size=1))
def test_shape_classes_are_never_mixed(descriptions: list[tuple[int, int | None]]) -> None:
    waiting = [job(seq, length, shape_class=kind) for seq, (kind, length) in enumerate(descriptions)]
    for batch in rounds(planner(), waiting):
        assert len({job.shape_class for job in batch.jobs}) == 1


@property_test
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=60),
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(1, 2000)),
    st.sampled_from([0.0, 10.0, 1500.0]),
)
def test_no_batch_exceeds_its_limits_except_a_single_job_larger_than_the_budget(
    lengths: list[int], size: int, tokens: int | None, launch: float
) -> None:
    bounded = planner(linear_cost(launch), max_batch_size=size, max_batch_tokens=tokens)
    planned: list[int] = []
    for batch in rounds(bounded, jobs_of(lengths)):
        assert len(batch.jobs) <= size
        assert tokens is None or batch.padded_tokens <= tokens or len(batch.jobs) == 1
        planned += chosen(batch)
    assert sorted(planned) == list(range(len(lengths)))


@property_test
@given(st.data())
def test_every_job_runs_exactly_once_under_any_arrivals_and_is_passed_over_only_within_the_age_bound(data: Any) -> None:
    options = {"max_batch_size": data.draw(st.integers(1, 4)), "max_wait_ms": data.draw(st.sampled_from([0, 300]))}
    fair = planner(max_age_ms=1000, max_batch_tokens=data.draw(st.sampled_from([None, 60])), **options)
    arrival = st.tuples(st.integers(0, 2), st.integers(0, 80), st.integers(0, 1), st.floats(-2, 0))
    now, waiting, made = 0.0, list[Job](), 0
    ran: list[int] = []
    steps = data.draw(st.lists(st.tuples(st.lists(arrival, max_size=4), st.floats(0, 0.7)), max_size=15))
    while steps or waiting:
        arrivals, pause = steps.pop() if steps else ([], 0.4)
        for priority, length, kind, age in arrivals:
            waiting.append(job(made, length, priority=priority, shape_class=kind, enqueued_at=now + age))
            made += 1
        batch = fair.choose(waiting, now)
        assert batch is not None or not waiting or fair.due_at(waiting) > now
        if batch is not None:
            old = [job for job in waiting if job.enqueued_at <= now - 1]
            assert not old or old[0] in batch.jobs
            ran += chosen(batch)
            waiting = [job for job in waiting if job not in batch.jobs]
        now += pause
    assert sorted(ran) == list(range(made))


@pytest.mark.parametrize(
    ("lengths", "options", "reason"),
    [
        ([5, 5, 5], {"max_batch_size": 3}, "full"),
        ([None, None, None], {"max_batch_size": 3}, "full"),
        ([5, 5], {}, "nothing left"),
        ([None, None], {}, "nothing left"),
        ([5, 5, 60], {"max_batch_tokens": 60}, "budget"),
        ([70, 5, 5], {"max_batch_tokens": 60}, "budget"),
        ([5, 5, 5000], {}, "cost"),
        ([5000, 5, 5], {}, "cost"),
    ],
)
def test_a_batch_says_why_it_is_not_larger(lengths: list[int | None], options: dict[str, Any], reason: str) -> None:
    batch = planner(**options).choose(jobs_of(lengths), 0.0)
    assert batch is not None
    assert batch.closed_by == reason


def test_the_waiting_jobs_are_left_as_they_are() -> None:
    waiting = jobs_of([9, 2, 7])
    before = list(waiting)
    planner(max_batch_size=2).choose(waiting, 0.0)
    assert waiting == before


# -- Limits of one batch -----------------------------------------------------------------------------------------------


def test_batches_of_preferred_sizes_know_how_many_rows_run() -> None:
    picky = planner(linear_cost(10), max_batch_size=8, preferred_batch_sizes=(1, 4))
    batches = list(rounds(picky, jobs_of([5] * 7)))
    assert sum(len(batch.jobs) for batch in batches) == 7
    assert all(batch.rows in (1, 4) and batch.rows >= len(batch.jobs) for batch in batches)
    assert batches[0].closed_by == "full"
    assert batches[0].padded_tokens == 20


# Padded up to 32 rows, 17 jobs cost as many tokens as 32 jobs. Two batches of 16 and 1 cost about half.
@pytest.mark.parametrize("length", [None, 100])
def test_jobs_run_as_a_smaller_preferred_size_if_that_costs_less(length: int | None) -> None:
    def per_row(sizes: Any, longest: Any) -> Any:
        return 1.0 + sizes * np.maximum(longest, 1.0)

    sizes = (1, 2, 4, 8, 16, 32)
    batch = planner(per_row, preferred_batch_sizes=sizes).choose(jobs_of([length] * 17), 0.0)
    assert batch is not None
    assert len(batch.jobs) == batch.rows == 16


def test_a_token_ceiling_limits_batches_further_than_the_budget() -> None:
    token_ceiling = TokenCeiling()
    bounded = planner(linear_cost(10_000), token_ceiling=token_ceiling, max_batch_tokens=1000)
    assert len(chosen(bounded.choose(jobs_of([50] * 30), 0.0))) == 20
    token_ceiling.failed(1000, 20)
    batch = bounded.choose(jobs_of([50] * 30), 0.0)
    assert len(chosen(batch)) == 10
    assert batch is not None
    assert batch.closed_by == "budget"
    assert chosen(bounded.choose(jobs_of([900]), 0.0)) == [0]


def test_a_token_ceiling_limits_the_number_of_jobs_without_a_length() -> None:
    token_ceiling = TokenCeiling()
    token_ceiling.failed(32, 32)
    batch = planner(token_ceiling=token_ceiling).choose(jobs_of([None] * 40), 0.0)
    assert len(chosen(batch)) == 16
    assert batch is not None
    assert batch.closed_by == "budget"


def test_a_decision_looks_at_no_more_jobs_than_may_wait() -> None:
    longest = 0

    def recording(sizes: Any, lengths: Any) -> Any:
        nonlocal longest
        longest = max(longest, int(np.max(lengths)))
        return 1500.0 + sizes * lengths

    planner(recording, max_batch_size=4, look_ahead=2).choose(jobs_of(range(1, 30)), 0.0)
    assert longest == 8


def test_a_decision_with_everything_waiting_asks_for_few_costs_however_large_a_batch_may_be() -> None:
    asked: list[int] = []

    def counted(sizes: Any, longest: Any) -> Any:
        asked.append(np.broadcast(sizes, longest).size)
        assert asked[-1] <= 2**17
        return 1500.0 + sizes * longest

    waiting = jobs_of(range(1, 65_537))
    batch = planner(counted, max_batch_size=8192).choose(waiting, 0.0)
    assert batch is not None
    assert sum(asked) <= 2**19


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_a_decision_over_256_jobs_takes_2_5_ms_at_most(deadline: float | None) -> None:
    waiting = [job(seq, 1 + seq * 389 % 512, deadline=deadline) for seq in range(256)]
    model = CostModel(32)
    model.observe(8, 100, 5.0)
    quick = planner(model)
    seconds = []
    for _ in range(30):
        began = time.thread_time()
        quick.choose(waiting, 0.0)
        seconds.append(time.thread_time() - began)
    assert min(seconds) < 0.0025  # The least, because other processes of this machine slow some runs down.


def test_a_batch_that_has_waited_max_wait_ms_is_closed_by_age() -> None:
    batch = planner(max_wait_ms=500).choose(jobs_of([None, None]), 0.5)
    assert batch is not None
    assert batch.closed_by == "age"
