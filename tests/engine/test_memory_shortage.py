"""A shortage of memory that ends: batches grow back to their old size, whatever the token ceiling fell to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median_low
from typing import Any

import pytest
from batchery.batchers import Job
from batchery.batchers.isolation import run_isolated
from batchery.configs import TaskOptions
from batchery.worker.engine.job_table import TaskState
from batchery.worker.engine.scheduler import Scheduler
from hypothesis import example, given, settings
from hypothesis import strategies as st

#: From a ceiling of 1 token, which is raised by 1 token at first and then by a sixteenth, to 32 jobs of 64 tokens it is
#: 80 steps of 16 batches; every third batch may be one that other jobs' lengths or costs have limited.
BATCHES_TO_RECOVER = 80 * 16 * 3


class Device:
    """Runs what the scheduler chooses of jobs without end, in a memory of so many tokens (jobs, without lengths)."""

    def __init__(self, lengths: Sequence[int | None], **options: Any) -> None:
        task = TaskState.create(TaskOptions(**options), 1)
        self.scheduler = Scheduler({"a": task})
        self.ceiling = task.ceiling
        self.memory = float("inf")
        self.now = 0.0
        self._seqs = itertools.count()
        self._lengths = lengths

    def run_batch(self) -> int:
        """Return the number of jobs in one batch."""
        scheduler, task = self.scheduler, self.scheduler.tasks["a"]
        seqs = itertools.islice(self._seqs, task.options.max_waiting - len(task.waiting))
        jobs = [
            Job("", "a", (), {}, None, self.now, seq, item=length, length=length)
            for seq in seqs
            for length in [self._lengths[seq % len(self._lengths)]]
        ]
        if jobs:
            scheduler.claimed(jobs)
            scheduler.prepared(jobs, self.now)
        batch = scheduler.next_batch(self.now)
        assert batch is not None
        scheduler.started(batch, self.now)
        parts = 0
        for outcomes in run_isolated(batch, self._forward, scheduler.out_of_memory):
            scheduler.move("ran", [outcome.job for outcome in outcomes])
            parts += 1
        self.now += (10 + batch.padded_tokens / 10) / 1000
        batch.finished_at = self.now
        scheduler.finished(batch, whole=parts == 1, more=False)
        scheduler.left(batch.jobs, "settled")
        return len(batch.jobs)

    def _forward(self, items: Sequence[Any]) -> list[Any]:
        if len(items) > 1 and len(items) * max(item or 1 for item in items) > self.memory:
            raise MemoryError
        return [*items]


@settings(deadline=None, max_examples=40)
@given(
    st.one_of(st.just([None]), st.lists(st.integers(1, 64), min_size=1, max_size=3)),
    st.integers(1, 2048),
    st.sampled_from([None, 300, 4000]),
    st.integers(1, 5),
)
@example([18], 18, None, 4)
@example([18], 31, None, 4)
@example([64], 120, 300, 1)
@example([11, 5, 11], 1, 300, 1)
def test_batches_grow_back_to_their_old_size_after_a_shortage_of_memory(
    lengths: list[int | None], memory: int, budget: int | None, batches: int
) -> None:
    device = Device(lengths, max_batch_size=32, max_batch_tokens=budget, look_ahead=2)
    old_size = median_low([device.run_batch() for _ in range(8)])  # a single batch may be larger by chance
    device.memory = memory
    for _ in range(batches):
        device.run_batch()
    device.memory = float("inf")
    assert any(device.run_batch() >= old_size for _ in range(BATCHES_TO_RECOVER)), device.ceiling.limit


def test_the_ceiling_stops_rising_where_it_limits_nothing() -> None:
    device = Device([18], max_batch_size=32, max_batch_tokens=100)
    device.memory = 40
    device.run_batch()
    device.memory = float("inf")
    for _ in range(2000):
        device.run_batch()
    assert device.ceiling.limit == pytest.approx(100, abs=10)
