"""Queues of waiting jobs, planners for them, a simple cost function, and the batches that are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from batchery.batchers.job import Batch, Job
from batchery.batchers.planning.cost import DEFAULT_LAUNCH_TOKENS, CostFunction, Floats
from batchery.batchers.planning.planner import GreedyPlanner
from batchery.batchers.planning.token_ceiling import TokenCeiling
from batchery.configs import TaskOptions
from numpy.typing import NDArray

NEVER_OLD = float("inf")


def linear_cost(launch: float = DEFAULT_LAUNCH_TOKENS) -> CostFunction:
    """The cost function `launch + number of jobs * longest`, in tokens."""

    def cost(sizes: NDArray[np.int64], longest: NDArray[np.int64], /) -> Floats:
        return np.asarray(launch + sizes * longest, dtype=np.float64)

    return cost


def job(seq: int, length: int | None = None, **fields: Any) -> Job:
    """A job that was enqueued at time 0, unless `enqueued_at` says otherwise."""
    return Job(str(seq), "task", (), {}, None, fields.pop("enqueued_at", 0.0), seq, length=length, **fields)


def jobs_of(lengths: Sequence[int | None]) -> list[Job]:
    return [job(seq, length) for seq, length in enumerate(lengths)]


def planner(
    cost: CostFunction | None = None, *, token_ceiling: TokenCeiling | None = None, **options: Any
) -> GreedyPlanner:
    return GreedyPlanner(TaskOptions(**{"max_age_ms": NEVER_OLD, **options}), cost, token_ceiling)


def chosen(batch: Batch | None) -> list[int]:
    """The claim numbers of a batch's jobs, in its order."""
    assert batch is not None
    return [job.seq for job in batch.jobs]


def rounds(planner: GreedyPlanner, waiting: list[Job], now: float = 0.0) -> Iterator[Batch]:
    """Choose batches and remove their jobs until no job is left."""
    waiting = list(waiting)
    while waiting:
        batch = planner.choose(waiting, now)
        assert batch is not None
        assert batch.jobs
        for job in batch.jobs:
            waiting.remove(job)
        yield batch
