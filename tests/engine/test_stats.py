"""What is told of batches: in the log, and summed up."""

from __future__ import annotations

import logging

import pytest
from batchery.batchers import Batch, Job
from batchery.worker.engine.stats import DeviceTime, Stats, log_batch


def a_batch() -> Batch:
    jobs = [
        Job(str(seq), "embed", (), {}, None, 10.0, seq, length=length, claimed_at=10.5, prepared_at=10.75)
        for seq, length in enumerate((4, 8))
    ]
    return Batch("embed", jobs, "cost", started_at=11.0, finished_at=11.25, number=7)


def test_a_batch_is_logged_with_its_size_padding_and_times(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_batch(a_batch(), settled_at=11.5)
    assert caplog.messages == [
        "Task embed: batch 7 of 2 (closed by: cost), padding 25 %, queue 750.0 ms, preprocess 250.0 ms, run 250.0 ms, "
        "settle 250.0 ms."
    ]


def test_a_log_that_nobody_reads_costs_no_sums(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        log_batch(a_batch(), settled_at=11.5)
    assert caplog.messages == []


def test_the_stats_of_two_tasks_add_up() -> None:
    one, other = Stats(failed=1), Stats()
    one.add(a_batch(), 11.5)
    other.add(a_batch(), 12.5)
    both = one.merge(other)
    assert (both.batches, both.jobs, both.failed, both.settle_s) == (2, 4, 1, 1.5)
    assert both.closed_by == {"cost": 2}
    assert both.summary()["mean_batch_size"] == 2
    assert both.summary()["settle_ms"] == 750


def test_without_batches_all_means_are_zero() -> None:
    assert Stats().summary()["run_ms"] == 0
    assert DeviceTime().idle_share == 0
