"""The queue that is replayed for `benchmarks padding`, in small."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from batchery.batchers.planning.cost import CostModel

from benchmarks import padding
from benchmarks.padding import DISTRIBUTIONS, SIZE, batchery, first_come, fixed_buckets, optimum, sorted_windows
from tests.support.planning import linear_cost


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    return DISTRIBUTIONS["lognormal"](1000)


def test_every_way_runs_every_job_once_in_batches_that_are_allowed(lengths: list[int]) -> None:
    cost = linear_cost(1500)
    for batches in (
        first_come(lengths),
        fixed_buckets(lengths),
        sorted_windows(lengths),
        batchery(lengths, cost, 1500, []),
        optimum(lengths, cost),
    ):
        assert sorted(length for batch, _ in batches for length in batch) == sorted(lengths)
        assert all(len(batch) <= SIZE and max(batch) <= longest for batch, longest in batches)


def test_lengths_are_the_same_on_every_run() -> None:
    for lengths in DISTRIBUTIONS.values():
        assert lengths(300) == lengths(300)
        assert all(1 <= length <= 512 for length in lengths(300))


def test_batchery_is_near_the_optimum_whether_it_knows_or_learns_the_costs(tmp_path: Path) -> None:
    args = argparse.Namespace(jobs=1500, plot=tmp_path / "padding.png")
    figures = padding.run(args).figures
    for suffix in ("", "_learning"):
        cost, share = figures[f"worst_vs_optimum{suffix}"], figures[f"worst_padding{suffix}"]
        assert isinstance(cost, float)
        assert isinstance(share, float)
        assert 1 <= cost <= 1.25  # a queue as short as this has few batches to be right about
        assert share <= 0.25
    assert args.plot.stat().st_size > 0


def test_a_model_learns_from_the_batches_of_its_queue(lengths: list[int]) -> None:
    model = CostModel(SIZE)
    batchery(lengths, model, 15_000, [])
    assert float(model(32, 35)) == pytest.approx(0.01 * (15_000 + 32 * 35), rel=0.15)
