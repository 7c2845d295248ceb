"""The planner: which waiting jobs run together, and when. Pure: the time is an argument.

Greedy and late-binding: asked when the device can take a batch, it answers with the best batch of what waits now,
and sets no timer unless `max_wait_ms` asks for one. Padding is what costs, so jobs of one shape class are sorted by
length and cut into batches by dynamic programming over a cost function; the batch that holds the job whose turn it
is runs, the others stay and may be cut differently next time.

The dynamic programme over a length-sorted queue is that of TurboTransformers (Fang et al., PPoPP 2021).
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

import numpy as np

from .cost import CostFunction, linear_cost
from .job import Batch, Job


class Options(Protocol):
    """What a planner reads of a task's options."""

    @property
    def max_batch_size(self) -> int: ...  # noqa: D102 - as configs.TaskOptions
    @property
    def max_batch_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def max_wait_ms(self) -> float: ...  # noqa: D102
    @property
    def max_age_ms(self) -> float: ...  # noqa: D102
    @property
    def max_waiting(self) -> int: ...  # noqa: D102


class Planner(Protocol):
    """Decides for one task. `waiting` is in claim order; nothing is removed from it here."""

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        """Return the batch to run now, its jobs taken from `waiting`; None where it is better to wait."""
        ...

    def due_at(self, waiting: Sequence[Job]) -> float:
        """Return the time from which `choose` answers with a batch, whether or not more jobs come."""
        ...


def cut(lengths: Sequence[int], cost: CostFunction, max_size: int, max_tokens: int | None) -> list[int]:
    """Cut jobs that are sorted by length into consecutive batches of the least total cost.

    `lengths` must be ascending. Returns the ends (exclusive) of the batches, in order. Every batch has at most
    `max_size` jobs, and at most `max_tokens` tokens counted as jobs times longest, or is a single job.
    """
    count = len(lengths)
    best = np.zeros(count + 1)
    size_of_last = np.zeros(count + 1, dtype=np.int64)
    unique, column = np.unique(np.asarray(lengths, dtype=np.int64), return_inverse=True)
    costs = cost(np.arange(1, max_size + 1)[None, :], unique[:, None])
    for end in range(1, count + 1):
        longest = lengths[end - 1]
        most = min(max_size, end)
        if max_tokens is not None:
            most = max(1, min(most, max_tokens // max(1, longest)))
        totals = best[end - most : end][::-1] + costs[column[end - 1], :most]
        pick = int(totals.argmin())
        best[end] = totals[pick]
        size_of_last[end] = pick + 1
    ends: list[int] = []
    end = count
    while end > 0:
        ends.append(end)
        end -= int(size_of_last[end])
    return ends[::-1]


class GreedyPlanner:
    """The default planner: the cheapest batch around the job whose turn it is, as soon as it is asked."""

    def __init__(self, options: Options, cost: CostFunction | None = None) -> None:
        """Plan under `options`; `cost` defaults to `linear_cost()`."""
        self._options = options
        self._cost = cost or linear_cost()

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        """See `Planner.choose`."""
        if not waiting:
            return None
        turn = self._turn(waiting, now)
        others = [job for job in waiting if job is not turn and job.shape_class == turn.shape_class]
        if any(job.priority != turn.priority for job in others):
            others.sort(key=_priority)
        if turn.length is None or any(job.length is None for job in others):
            batch = self._in_order(turn, others)
        else:
            batch = self._by_length(turn, others)
        if self._options.max_wait_ms and now < self.due_at(waiting) and self._may_grow(batch, waiting):
            return None
        return batch

    def due_at(self, waiting: Sequence[Job]) -> float:
        """See `Planner.due_at`."""
        return min(map(_enqueued_at, waiting), default=float("inf")) + self._options.max_wait_ms / 1000

    def _turn(self, waiting: Sequence[Job], now: float) -> Job:
        too_old = now - self._options.max_age_ms / 1000
        # Where several have the highest priority, min returns the first of them, which was claimed first.
        return next((job for job in waiting if job.enqueued_at <= too_old), None) or min(waiting, key=_priority)

    def _may_grow(self, batch: Batch, waiting: Sequence[Job]) -> bool:
        longest = max(job.length or 0 for job in batch.jobs)
        return self._fits(len(batch.jobs) + 1, longest) and len(waiting) < self._options.max_waiting

    def _fits(self, count: int, longest: int) -> bool:
        tokens = self._options.max_batch_tokens
        return count <= self._options.max_batch_size and (tokens is None or count * longest <= tokens)

    def _in_order(self, turn: Job, others: list[Job]) -> Batch:
        jobs = [turn, *others][: self._options.max_batch_size]
        return Batch(turn.task, jobs, "full" if len(jobs) == self._options.max_batch_size else "nothing left")

    def _by_length(self, turn: Job, others: list[Job]) -> Batch:
        # Of equally long jobs those whose turn comes first stand next to the job whose turn it is, and so share its
        # batch: `others` is in the order of service, and sorting is stable.
        shorter = sorted((job for job in reversed(others) if _length(job) < _length(turn)), key=_length)
        longer = sorted((job for job in others if _length(job) >= _length(turn)), key=_length)
        jobs = [*shorter, turn, *longer]
        lengths = list(map(_length, jobs))
        start = 0
        for end in cut(lengths, self._cost, self._options.max_batch_size, self._options.max_batch_tokens):
            if len(shorter) < end:
                break
            start = end
        return Batch(turn.task, jobs[start:end], self._closed_by(lengths, start, end))

    def _closed_by(self, lengths: Sequence[int], start: int, end: int) -> str:
        count = end - start
        if count == self._options.max_batch_size:
            return "full"
        # The cheapest job to add is the next longer one, or another one as long as the longest.
        if not self._fits(count + 1, lengths[min(end, len(lengths) - 1)]):
            return "budget"
        return "nothing left" if count == len(lengths) else "cost"


_priority = attrgetter("priority")
_length = attrgetter("length")
_enqueued_at = attrgetter("enqueued_at")
