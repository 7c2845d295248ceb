"""The planner: which waiting jobs run together, and when. It is pure: the time is an argument.

The planner is greedy and binds late: whenever the device can take a batch, it answers with the best batch of the jobs
that wait now. It sets no timer unless `max_wait_ms` asks for one. Jobs that it does not choose keep waiting, and may be
combined differently next time.

First it picks the job that the batch must contain: the first, in claim order, of those that have waited `max_age_ms`;
else the one with the earliest deadline at risk; else the first of the highest priority, and among those, of the jobs
within `small_batch_threshold`. A job that has waited `max_age_ms` therefore runs after at most as many batches as jobs
stand before it in claim order, whatever else arrives.

Then the jobs of its shape class are sorted by length, because padding is expensive, and cut into batches by cost.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...configs import TaskOptions
from ..job import Batch, ClosedBy, Job
from .cost import CostFunction, CostModel
from .cut import Limits, best_batch, best_count
from .token_ceiling import TokenCeiling


class Planner(Protocol):
    """Decides for one task. `waiting` is in claim order, and the planner removes nothing from it."""

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        """Return the batch to run now, with jobs of `waiting`; None if it is better to wait."""

    def set_options(self, options: TaskOptions) -> None:
        """Plan under other options from now on."""

    def due_at(self, waiting: Sequence[Job]) -> float:
        """Return the time from which `choose` returns a batch even if no more jobs arrive."""


class GreedyPlanner:
    """The default planner: it returns the cheapest batch around the most urgent job as soon as it is asked.

    `cost` defaults to an untrained `CostModel`; deadlines are kept only if it is in milliseconds. `token_ceiling`
    limits a batch further than `max_batch_tokens`; if jobs have no length, it limits their number.
    """

    def __init__(
        self, options: TaskOptions, cost: CostFunction | None = None, token_ceiling: TokenCeiling | None = None
    ) -> None:
        self.set_options(options)
        self._cost = cost or CostModel(options.max_batch_size, options.max_batch_tokens)
        self._token_ceiling = token_ceiling or TokenCeiling()

    def set_options(self, options: TaskOptions) -> None:
        self._options = options
        self._rank = attrgetter("priority") if options.small_batch_threshold is None else self._small_first

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        if not waiting:
            return None
        if len(waiting) == 1 and not self._options.max_wait_ms:  # One job needs no arithmetic, which takes 0.3 ms.
            return self._batch([*waiting], "full" if self._options.max_batch_size == 1 else "nothing left")
        first = min(waiting, key=self._rank)  # The one claimed first, if several rank equal.
        age_limit = now - self._options.max_age_ms / 1000
        aged = next((job for job in waiting if job.enqueued_at <= age_limit), None)
        batch = self._around(aged or first, waiting)
        urgent = None if aged else self._at_risk(batch, waiting, now)
        if urgent is not None:
            batch = self._around(urgent, waiting)
        waited = self._options.max_wait_ms > 0 and self._may_grow(batch, waiting)
        if waited and now < self.due_at(waiting):
            return None
        if batch.closed_by in ("nothing left", "cost"):
            if urgent is not None and urgent is not first:
                batch.closed_by = "deadline"
            elif waited or (aged is not None and aged is not first):
                batch.closed_by = "age"
        return batch

    def due_at(self, waiting: Sequence[Job]) -> float:
        due_at = min(map(attrgetter("enqueued_at"), waiting), default=float("inf")) + self._options.max_wait_ms / 1000
        if self._options.max_wait_ms and (expiring := [job for job in waiting if job.deadline is not None]):
            # An expiring job may have to run together with all the others.
            runs_s = self._ms(expiring, len(waiting)) / 1000
            due_at = min(due_at, float((np.array([*map(_deadline, expiring)]) - runs_s).min()))
        return due_at

    def _at_risk(self, batch: Batch, waiting: Sequence[Job], now: float) -> Job | None:
        """Return the job with the earliest deadline of those that can be kept now, but not after `batch`.

        A batch is not made smaller because of a deadline in it: under overload, ever smaller batches would make ever
        more jobs late.
        """
        expiring = [job for job in waiting if job.deadline is not None]
        chosen = set(map(id, batch.jobs)) if expiring else ()
        expiring = [job for job in expiring if id(job) not in chosen]
        if not expiring:
            return None
        batch_ms = self._ms([max(batch.jobs, key=_length_or_0)], len(batch.jobs))
        alone_ms = self._ms(expiring, 1)
        slack_ms = 1000 * (np.array([*map(_deadline, expiring)]) - now)
        at_risk = np.flatnonzero((alone_ms <= slack_ms) & (slack_ms < batch_ms + alone_ms))
        return min((expiring[index] for index in at_risk), key=_deadline, default=None)

    def _ms(self, jobs: Sequence[Job], count: int) -> NDArray[np.float64]:
        """Return, for each of `jobs`, the cost of a batch of `count` (or as many as allowed) in which it is longest."""
        rows = self._limits().rows()
        return self._cost(rows[min(count, len(rows)) - 1], np.array([*map(_length_or_0, jobs)]))

    def _small_first(self, job: Job) -> tuple[int, bool]:
        return job.priority, _length_or_0(job) > (self._options.small_batch_threshold or 0)

    def _limits(self, *, lengths: bool = True) -> Limits:
        options, limit = self._options, self._token_ceiling.limit
        size, tokens = options.max_batch_size, options.max_batch_tokens
        if limit is not None and lengths:
            tokens = min(tokens or limit, limit)
        elif limit is not None:
            size = min(size, limit)
        return Limits(size, tokens, options.preferred_batch_sizes)

    def _batch(self, jobs: list[Job], closed_by: ClosedBy) -> Batch:
        return Batch(jobs[0].task, jobs, closed_by, sizes=self._options.preferred_batch_sizes)

    def _around(self, required: Job, waiting: Sequence[Job]) -> Batch:
        """Return the best batch that contains the job `required`."""
        others = [job for job in waiting if job is not required and job.shape_class == required.shape_class]
        others.sort(key=self._rank)
        others = others[: self._options.max_waiting - 1]
        if required.length is None or None in set(map(_length, others)):
            return self._in_order(required, others)
        return self._by_length(required, others)

    def _in_order(self, required: Job, others: list[Job]) -> Batch:
        jobs = [required, *others]
        limits = self._limits(lengths=False)
        rows = limits.rows()
        count = best_count(self._cost(rows[: len(jobs)], np.array(0)))
        if count == len(rows):
            return self._batch(jobs[:count], "budget" if limits.max_size < self._options.max_batch_size else "full")
        return self._batch(jobs[:count], "nothing left" if count == len(jobs) else "cost")

    def _by_length(self, required: Job, others: list[Job]) -> Batch:
        # `others` is in the order of service and sorting is stable, so among equally long jobs the earlier ones stand
        # next to the required job, and share its batch.
        shorter = sorted((job for job in reversed(others) if _length(job) < _length(required)), key=_length)
        longer = sorted((job for job in others if _length(job) >= _length(required)), key=_length)
        jobs = [*shorter, required, *longer]
        limits = self._limits()
        backlog = 2 * len(jobs) >= self._options.max_waiting
        start, end = best_batch([*map(_length, jobs)], len(shorter), self._cost, limits, backlog=backlog)
        return self._batch(jobs[start:end], _closed_by(jobs, start, end, limits))

    def _may_grow(self, batch: Batch, waiting: Sequence[Job]) -> bool:
        limits = self._limits(lengths=batch.jobs[0].length is not None)
        return len(batch.jobs) < limits.most(batch.longest) and len(waiting) < self._options.max_waiting


def _closed_by(jobs: Sequence[Job], start: int, end: int, limits: Limits) -> ClosedBy:
    count = end - start
    nearly = count + count // 128  # what `best_batch` leaves empty counts as full
    if nearly >= len(limits.rows()):
        return "full"
    # The cheapest job to add is the next longer one or, if there is none, one as long as the longest.
    if nearly >= limits.most(_length(jobs[min(end, len(jobs) - 1)])):
        return "budget"
    return "nothing left" if count == len(jobs) else "cost"


def _length_or_0(job: Job) -> int:
    return job.length or 0


_deadline = attrgetter("deadline")
_length = attrgetter("length")
