"""Lines of waiting jobs, planners for them, and what they choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from batchery.batchers.job import Batch, Job
from batchery.batchers.planning.cost import CostFunction
from batchery.batchers.planning.planner import GreedyPlanner
from batchery.batchers.planning.token_ceiling import TokenCeiling
from batchery.configs import TaskOptions

NEVER_OLD = float("inf")


def job(seq: int, length: int | None = None, **fields: Any) -> Job:
    """A job that came at time 0, unless `enqueued_at` says otherwise."""
    return Job(str(seq), "task", (), {}, None, fields.pop("enqueued_at", 0.0), seq, length=length, **fields)


def jobs_of(lengths: Sequence[int | None]) -> list[Job]:
    return [job(seq, length) for seq, length in enumerate(lengths)]


def planner(cost: CostFunction | None = None, *, ceiling: TokenCeiling | None = None, **options: Any) -> GreedyPlanner:
    return GreedyPlanner(TaskOptions(**{"max_age_ms": NEVER_OLD, **options}), cost, ceiling)


def chosen(batch: Batch | None) -> list[int]:
    """The claim numbers of a batch's jobs, in its order."""
    assert batch is not None
    return [job.seq for job in batch.jobs]


def rounds(planner: GreedyPlanner, waiting: list[Job], now: float = 0.0) -> Iterator[Batch]:
    """Choose and remove until nothing is left."""
    waiting = list(waiting)
    while waiting:
        batch = planner.choose(waiting, now)
        assert batch is not None
        assert batch.jobs
        for job in batch.jobs:
            waiting.remove(job)
        yield batch
