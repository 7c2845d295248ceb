"""The cut of a queue of jobs into batches: it is the best of all cuts, and never worse than single jobs."""

import random
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import pytest
from batchery.batchers.planning.cost import CostFunction
from batchery.batchers.planning.cut import Limits, batch_around, best_batch, best_count, cut, price
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.planning import linear_cost

property_test = settings(deadline=None, max_examples=150)


def cost_of(lengths: Sequence[int], ends: Sequence[int], cost: CostFunction) -> float:
    starts = [0, *ends[:-1]]
    parts = zip(starts, ends, strict=True)
    return sum(float(cost(np.array([end - start]), np.array(lengths[end - 1]))[0]) for start, end in parts)


def cuts(count: int) -> Iterator[list[int]]:
    """Every way to cut `count` jobs into consecutive batches, as their ends."""
    for pattern in range(2 ** max(0, count - 1)):
        yield [*(place + 1 for place in range(count - 1) if pattern >> place & 1), count]


def is_allowed(lengths: Sequence[int], ends: Sequence[int], size: int, tokens: int | None) -> bool:
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        count = end - start
        if count > size or (tokens is not None and count > 1 and count * lengths[end - 1] > tokens):
            return False
    return True


def steps_cost(sizes: NDArray[np.int64], longest: NDArray[np.int64]) -> NDArray[np.float64]:
    """A measured cost, which grows in steps and not linearly."""
    steps: NDArray[np.float64] = 7.0 + np.ceil(sizes / 3) * np.maximum(4, longest) ** 1.5
    return steps


@property_test
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=9).map(sorted),
    st.integers(1, 10),
    st.one_of(st.none(), st.integers(1, 600)),
    st.sampled_from([linear_cost(0), linear_cost(30), linear_cost(400), steps_cost]),
)
def test_the_cut_costs_what_the_best_of_all_cuts_costs(
    lengths: list[int], size: int, tokens: int | None, cost: CostFunction
) -> None:
    ends = cut(price(lengths, cost, Limits(size, tokens)))
    assert is_allowed(lengths, ends, size, tokens)
    allowed = [other for other in cuts(len(lengths)) if is_allowed(lengths, other, size, tokens)]
    best = min(cost_of(lengths, other, cost) for other in allowed)
    assert cost_of(lengths, ends, cost) == pytest.approx(best)


def test_an_empty_queue_is_cut_into_no_batches() -> None:
    assert cut(price([], linear_cost(), Limits(4))) == []


def test_a_token_budget_counts_the_rows_that_a_batch_is_padded_up_to() -> None:
    prices = price([10, 10, 10], linear_cost(), Limits(4, 35, (1, 2, 4)))
    assert np.isfinite(prices).tolist() == [[True, True, False, False]] * 3


def test_sizes_decide_the_costs_of_batches_and_the_largest_size_limits_the_number_of_jobs() -> None:
    assert Limits(8, None, (1, 4)).rows().tolist() == [1, 4, 4, 4]
    assert price([10], linear_cost(0), Limits(8, None, (1, 4))).tolist() == [[10, 40, 40, 40]]


# -- Never worse than one by one ---------------------------------------------------------------------------------------

#: Costs of 1, 2, ... jobs for each length: arbitrary numbers, because a device may be irregular.
tables = st.lists(st.lists(st.floats(0.01, 100), min_size=6, max_size=6), min_size=1, max_size=14)


def parts_price(prices: NDArray[np.float64], ends: Sequence[int]) -> float:
    return sum(float(prices[end - 1, end - start - 1]) for start, end in zip([0, *ends[:-1]], ends, strict=True))


@property_test
@given(tables, st.booleans(), st.data())
def test_no_batch_costs_more_than_any_consecutive_parts_of_it_whatever_batches_cost(
    table: list[list[float]], backlog: bool, data: st.DataObject
) -> None:
    prices = np.array(table)
    required = data.draw(st.integers(0, len(table) - 1))
    start, end = batch_around(prices, required, backlog=backlog)
    assert start <= required < end
    size = end - start
    assert size <= 6
    whole = prices[end - 1, size - 1]
    for ends in cuts(size):
        assert all(part <= 6 for part in np.diff([0, *ends]))
        assert whole <= parts_price(prices[start:end], ends) * (1 + 1e-9)


@property_test
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=40))
def test_equal_jobs_never_cost_more_together_than_one_by_one_and_hardly_more_than_in_parts(
    table: list[float],
) -> None:
    prices = np.array(table)
    count = best_count(prices)
    assert prices[count - 1] <= count * prices[0] * (1 + 1e-9)
    for part in range(1, count):
        assert prices[count - 1] <= 1.03 * (prices[part - 1] / part) * count


def test_equal_jobs_all_run_together_if_a_larger_batch_costs_less_per_job() -> None:
    assert best_count(np.array([5 + 0.5 * count for count in range(1, 33)])) == 32


def test_equal_jobs_run_one_by_one_if_a_batch_costs_more_per_job() -> None:
    assert best_count(np.array([count**1.1 for count in range(1, 33)])) == 1


def test_a_measurement_that_is_a_little_high_does_not_shrink_batches() -> None:
    prices = np.array([5 + 0.5 * count for count in range(1, 33)])
    prices[31] *= 1.02
    assert best_count(prices) == 32


def cost_of_a_queue(lengths: Sequence[int], launch: float, *, backlog: bool) -> float:
    """The cost of all batches if 256 jobs of the queue are seen at a time and the oldest job's batch runs."""
    queue, seen, total = list(enumerate(lengths)), list[tuple[int, int]](), 0.0
    while queue or seen:
        missing = 256 - len(seen)
        seen, queue = seen + queue[:missing], queue[missing:]
        by_length = sorted((length, seq) for seq, length in seen)
        required = by_length.index(min(by_length, key=lambda place: place[1]))
        prices = price([length for length, _ in by_length], linear_cost(launch), Limits(32))
        start, end = batch_around(prices, required, backlog=backlog)
        total += prices[end - 1, end - start - 1]
        chosen = {seq for _, seq in by_length[start:end]}
        seen = [job for job in seen if job[0] not in chosen]
    return total


def test_under_backlog_opportunity_costs_beat_the_best_cut_of_the_waiting_jobs() -> None:
    chance = random.Random(5)
    lengths = [min(512, max(1, round(chance.lognormvariate(3.55, 1.9)))) for _ in range(2000)]
    assert cost_of_a_queue(lengths, 5000, backlog=True) < 0.98 * cost_of_a_queue(lengths, 5000, backlog=False)


@property_test
@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=60).map(sorted),
    st.one_of(st.none(), st.integers(1, 900)),
    st.sampled_from([0.0, 30.0, 1500.0]),
    st.booleans(),
    st.data(),
)
def test_every_batch_is_within_its_limits_and_contains_the_required_job(
    lengths: list[int], tokens: int | None, launch: float, backlog: bool, data: st.DataObject
) -> None:
    required = data.draw(st.integers(0, len(lengths) - 1))
    start, end = batch_around(price(lengths, linear_cost(launch), Limits(8, tokens)), required, backlog=backlog)
    assert start <= required < end <= len(lengths)
    assert is_allowed(lengths[start:end], [end - start], 8, tokens)


# -- Large batches -----------------------------------------------------------------------------------------------------


@property_test
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=90).map(sorted),
    st.integers(1, 90),
    st.one_of(st.none(), st.integers(1, 3000)),
    st.sampled_from([linear_cost(0), linear_cost(30), linear_cost(400), linear_cost(10_000), steps_cost]),
    st.booleans(),
    st.data(),
)
def test_jobs_in_groups_make_batches_that_are_allowed_and_never_cost_more_than_one_by_one(
    lengths: list[int], size: int, tokens: int | None, cost: CostFunction, backlog: bool, data: st.DataObject
) -> None:
    required = data.draw(st.integers(0, len(lengths) - 1))
    module = "batchery.batchers.planning.cut."
    with mock.patch(f"{module}_SEEN", 8), mock.patch(f"{module}_LARGEST", 4):
        start, end = best_batch(lengths, required, cost, Limits(size, tokens), backlog=backlog)
    assert start <= required < end <= len(lengths)
    batch = lengths[start:end]
    assert is_allowed(batch, [len(batch)], size, tokens)
    assert cost_of(batch, [len(batch)], cost) <= cost_of(batch, range(1, len(batch) + 1), cost) * (1 + 1e-9)


def test_groups_fill_a_large_batch_where_that_is_cheapest() -> None:
    lengths = [1 + place // 100 for place in range(40_000)]
    for size in (300, 1000, 5000, 8192):
        start, end = best_batch(lengths, 20_000, linear_cost(1e9), Limits(size), backlog=True)
        assert size * 127 // 128 <= end - start <= size


def test_a_small_batch_is_found_where_large_ones_are_allowed_and_cost_more() -> None:
    lengths = [1 + place // 100 for place in range(40_000)]
    for backlog in (False, True):
        start, end = best_batch(lengths, 20_050, linear_cost(0), Limits(8192), backlog=backlog)
        assert {*lengths[start:end]} == {201}, "nothing is padded where a launch costs nothing"


@pytest.mark.parametrize("tokens", [None, 100_000])
@pytest.mark.parametrize("size", [256, 257, 2048, 8192, 65_536])
def test_tables_of_prices_have_a_bounded_number_of_cells(size: int, tokens: int | None) -> None:
    cells: list[int] = []

    def counted(sizes: NDArray[np.int64], longest: NDArray[np.int64], /) -> NDArray[np.float64]:
        cells.append(np.broadcast(sizes, longest).size)
        assert cells[-1] <= 2**17
        return np.asarray(1500.0 + sizes * longest)

    best_batch(range(1, 8 * size + 1), 4 * size, counted, Limits(size, tokens), backlog=True)
    assert len(cells) <= 20
