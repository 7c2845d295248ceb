"""The cost model: plausible before any measurement, accurate after a few, and robust against outliers."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from batchery.batchers.job import Batch
from batchery.batchers.planning.cost import CostModel
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.planning import jobs_of, linear_cost, planner, rounds

Device = Callable[[int, int], float]

COUNTS = np.array([1, 2, 3, 5, 8, 13, 21, 32])
LENGTHS = np.array([1, 6, 20, 45, 90, 170, 330, 512])

#: Milliseconds for a batch of n jobs padded to L, on devices that have little in common.
DEVICES: dict[str, Device] = {
    "in proportion": lambda n, length: 0.01 * (1500 + n * length),
    "a CPU whose cache is soon full": lambda n, length: 1 + 0.1 * n * length * (1.4 if n * length > 2048 else 1.0),
    "a GPU, flat up to 4096 tokens": lambda n, length: max(6.0, 6 * n * length / 4096) + 0.01 * n,
    "attention": lambda n, length: 4 + 0.002 * n * length + 2e-5 * n * length**2,
    "recurrent, batches nearly free": lambda n, length: 2 + 0.05 * length + 0.0005 * n * length,
    "tiles of eight": lambda n, length: 3 + -(-n // 8) * (0.2 + length / 100),
    "no gain from batches": lambda n, length: 0.01 * n + 0.05 * n * length,
}


def warmed_up(device: Device, chance: random.Random | None = None, shapes: int | None = None) -> CostModel:
    model = CostModel(32)
    for count, longest in model.grid(512)[:shapes]:
        model.observe(count, longest, device(count, longest) * (chance.lognormvariate(0, 0.08) if chance else 1))
    return model


def errors(model: CostModel, device: Device) -> NDArray[np.float64]:
    """The model's error for each of many shapes, as a share of the true cost."""
    true = np.array([[device(int(count), int(longest)) for longest in LENGTHS] for count in COUNTS])
    off: NDArray[np.float64] = np.abs(model(COUNTS[:, None], LENGTHS[None, :]) / true - 1)
    return off


def total(batches: list[Batch], device: Device) -> float:
    return sum(device(len(batch.jobs), max(job.length or 0 for job in batch.jobs)) for batch in batches)


# -- Before and after --------------------------------------------------------------------------------------------------


def test_before_any_measurement_it_is_the_linear_cost_in_milliseconds() -> None:
    shapes = COUNTS[:, None], np.array([0, 1, 16, 64, 512])[None, :]
    assert CostModel(32)(*shapes) == pytest.approx(0.001 * linear_cost()(*shapes), rel=0.01)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_a_warm_up_makes_it_accurate_on_any_device(device: Device) -> None:
    off = errors(warmed_up(device, random.Random(1)), device)
    assert np.median(off) < 0.13
    assert np.quantile(off, 0.9) < 0.6


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_a_planner_that_learns_the_costs_does_nearly_as_well_as_one_that_knows_them(device: Device) -> None:
    chance = random.Random(2)
    lengths = [min(512, max(1, round(chance.lognormvariate(3.5, 1.3)))) for _ in range(600)]
    table = np.array([[device(count, longest) for longest in range(513)] for count in range(33)])
    model, learned = warmed_up(device, chance, shapes=4), []
    for batch in rounds(planner(model), jobs_of(lengths)):
        learned.append(batch)
        longest = max(job.length or 0 for job in batch.jobs)
        model.observe(len(batch.jobs), longest, device(len(batch.jobs), longest) * chance.lognormvariate(0, 0.08))
    known = list(rounds(planner(lambda sizes, longest: table[sizes, longest]), jobs_of(lengths)))
    assert total(learned, device) < 1.2 * total(known, device)


def test_a_warm_up_may_be_cut_short() -> None:
    device = DEVICES["in proportion"]
    for shapes in range(2, 17):
        assert np.median(errors(warmed_up(device, shapes=shapes), device)) < 0.25


def test_costs_of_larger_and_longer_batches_than_ever_seen_are_extrapolated() -> None:
    device = DEVICES["in proportion"]
    model = CostModel(64)
    for count in (1, 4, 16):
        for longest in (8, 32, 128):
            model.observe(count, longest, device(count, longest))
    assert float(model(64, 1000)) == pytest.approx(device(64, 1000), rel=0.1)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 600), st.floats(1e-3, 1e4)), max_size=40),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_a_batch_never_costs_less_for_being_larger_or_longer_whatever_was_measured(
    measured: list[tuple[int, int, float]], lengths: bool
) -> None:
    model = CostModel(32)
    for count, longest, ms in measured:
        model.observe(count, longest if lengths else None, ms)
    table = model(np.arange(1, 41)[:, None], np.arange(0, 900, 7)[None, :])
    assert np.isfinite(table).all()
    assert (table > 0).all()
    slack = 1e-9 * table.max()
    assert (np.diff(table, axis=0) >= -slack).all()
    assert (np.diff(table, axis=1) >= -slack).all()


def test_costs_of_jobs_without_a_length_are_learned_by_count_alone() -> None:
    model = CostModel(64)
    for count, longest in model.grid():
        assert longest == 0
        model.observe(count, None, 5 + 0.5 * count)
    assert model(np.arange(1, 65), 0) == pytest.approx(5 + 0.5 * np.arange(1, 65), rel=0.1)


def test_sizes_and_lengths_are_broadcast() -> None:
    model = warmed_up(DEVICES["attention"])
    table = model(COUNTS[:, None], LENGTHS[None, :])
    assert table.shape == (8, 8)
    for row, count in enumerate(COUNTS):
        assert model(count, LENGTHS) == pytest.approx(table[row])
    for column, longest in enumerate(LENGTHS):
        assert model(COUNTS, longest) == pytest.approx(table[:, column])


# -- Outliers ----------------------------------------------------------------------------------------------------------


def test_a_slow_first_run_is_forgotten_after_the_second() -> None:
    device, model = DEVICES["in proportion"], CostModel(32)
    for count, longest in model.grid(512):
        model.observe(count, longest, 50 * device(count, longest))
        model.observe(count, longest, device(count, longest))
    assert np.median(errors(model, device)) < 0.02


def test_two_slow_batches_among_five_do_no_harm() -> None:
    model = CostModel(32)
    for ms in (20, 500, 20, 500, 20):
        model.observe(32, 100, ms)
    assert float(model(32, 100)) == pytest.approx(20, rel=0.05)


def test_a_device_that_has_become_slower_is_believed_after_a_few_batches() -> None:
    model = CostModel(32)
    for ms in [20] * 100 + [40] * 20:
        model.observe(32, 100, ms)
    assert float(model(32, 100)) == pytest.approx(40, rel=0.05)


def test_a_shape_that_was_slow_once_is_retried_later() -> None:
    device = DEVICES["a GPU, flat up to 4096 tokens"]
    model = warmed_up(device)
    model.observe(24, 40, 100 * device(24, 40))
    for _ in range(2000):
        model.observe(8, 40, device(8, 40))
    assert float(model(24, 40)) < 1.6 * device(24, 40)


@pytest.mark.parametrize(("count", "ms"), [(0, 5.0), (4, 0.0), (4, -1.0), (4, float("inf")), (4, float("nan"))])
def test_an_impossible_measurement_is_ignored(count: int, ms: float) -> None:
    model = CostModel(32)
    model.observe(count, 10, ms)
    assert float(model(4, 10)) == float(CostModel(32)(4, 10))


# -- The grid ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.one_of(st.none(), st.integers(1, 40_000)), st.one_of(st.none(), st.integers(1, 2000)))
def test_the_grid_is_small_and_within_the_limits_and_begins_with_the_largest_batch(
    size: int, tokens: int | None, longest: int | None
) -> None:
    grid = CostModel(size, tokens).grid(longest)
    assert len(grid) == len(set(grid)) <= 25
    assert grid[0][1] == (longest or 0)
    for count, length in grid:
        assert 1 <= count <= size
        assert tokens is None or count == 1 or count * length <= tokens
    assert grid[0][0] == (size if tokens is None or not longest else max(1, min(size, tokens // longest)))


def test_the_grid_has_the_sizes_that_a_model_is_compiled_for() -> None:
    assert {count for count, _ in CostModel(32, preferred_batch_sizes=(1, 8, 24)).grid(100)} == {1, 8, 24}
