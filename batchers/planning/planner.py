"""The planner: which waiting jobs run together, and when. Pure: the time is an argument.

Greedy and late-binding: asked when the device can take a batch, it answers with the best batch of what waits now,
and sets no timer unless `max_wait_ms` asks for one. It runs a batch around the job whose turn it is; the others stay
and may be cut differently next time.

Whose turn: the first, in claim order, of those that have waited `max_age_ms`; else the one with the earliest of the
deadlines at risk; else the first of the highest priority (among them, of those within `small_batch_threshold`). So a
job that has waited `max_age_ms` runs after at most as many batches as jobs stand before it in claim order, whatever
else arrives.

Which others: padding is what costs, so jobs of one shape class are sorted by length and cut by what batches cost.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...configs import TaskOptions
from ..job import Batch, Job
from .cost import CostFunction, CostModel
from .cut import Limits, batch_around, best_count, price
from .token_ceiling import TokenCeiling


class Planner(Protocol):
    """Decides for one task. `waiting` is in claim order; nothing is removed from it here."""

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        """Return the batch to run now, its jobs taken from `waiting`; None where it is better to wait."""
        ...

    def set_options(self, options: TaskOptions) -> None:
        """Plan under other options from now on."""
        ...

    def due_at(self, waiting: Sequence[Job]) -> float:
        """Return the time from which `choose` answers with a batch, whether or not more jobs come."""
        ...


class GreedyPlanner:
    """The default planner: the cheapest batch around the job whose turn it is, as soon as it is asked."""

    def __init__(
        self, options: TaskOptions, cost: CostFunction | None = None, ceiling: TokenCeiling | None = None
    ) -> None:
        """Plan under `options`.

        `cost` defaults to a `CostModel` that nobody teaches; one that is not in milliseconds cannot keep deadlines.
        `ceiling` bounds a batch below `max_batch_tokens`; where jobs have no length, it bounds their number.
        """
        self.set_options(options)
        self._cost = cost or CostModel(options.max_batch_size, options.max_batch_tokens)
        self._ceiling = ceiling or TokenCeiling()

    def set_options(self, options: TaskOptions) -> None:
        """See `Planner.set_options`."""
        self._options = options
        self._rank = _priority if options.small_batch_threshold is None else self._small_first

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        """See `Planner.choose`."""
        if not waiting:
            return None
        if len(waiting) == 1 and not self._options.max_wait_ms:  # a lone job needs no arithmetic, which takes 0.3 ms
            closed_by = "full" if self._options.max_batch_size == 1 else "nothing left"
            return Batch(waiting[0].task, [*waiting], closed_by, sizes=self._options.preferred_batch_sizes)
        turn = first = min(waiting, key=self._rank)  # where several rank equal, the one claimed first
        too_old = now - self._options.max_age_ms / 1000
        aged = next((job for job in waiting if job.enqueued_at <= too_old), None)
        batch = self._around(aged or turn, waiting)
        late = None if aged else self._at_risk(batch, waiting, now)
        if late is not None:
            batch = self._around(late, waiting)
        waited = self._options.max_wait_ms > 0 and self._may_grow(batch, waiting)
        if waited and now < self.due_at(waiting):
            return None
        if batch.closed_by in ("nothing left", "cost"):
            if late is not None and late is not first:
                batch.closed_by = "deadline"
            elif waited or (aged is not None and aged is not first):
                batch.closed_by = "age"
        return batch

    def due_at(self, waiting: Sequence[Job]) -> float:
        """See `Planner.due_at`."""
        due_at = min(map(_enqueued_at, waiting), default=float("inf")) + self._options.max_wait_ms / 1000
        if self._options.max_wait_ms and (urgent := [job for job in waiting if job.deadline is not None]):
            # It may have to run with all that wait.
            runs_s = self._ms(urgent, len(waiting)) / 1000
            due_at = min(due_at, float((np.array([*map(_deadline, urgent)]) - runs_s).min()))
        return due_at

    def _at_risk(self, batch: Batch, waiting: Sequence[Job], now: float) -> Job | None:
        """Return the job with the earliest deadline of those that are lost if `batch` runs first, and not yet lost.

        A batch is not cut short for a deadline in it: in overload ever smaller batches would make ever more jobs late.
        """
        urgent = [job for job in waiting if job.deadline is not None]
        if not urgent:
            return None
        inside = set(map(id, batch.jobs))
        if not (urgent := [job for job in urgent if id(job) not in inside]):
            return None
        takes = self._ms([max(batch.jobs, key=_length_or_0)], len(batch.jobs))
        alone = self._ms(urgent, 1)
        slack = 1000 * (np.array([*map(_deadline, urgent)]) - now)
        at_risk = [urgent[index] for index in np.flatnonzero((alone <= slack) & (slack < takes + alone))]
        return min(at_risk, key=_deadline, default=None)

    def _ms(self, jobs: Sequence[Job], count: int) -> NDArray[np.float64]:
        """Return what a batch of `count` (or as many as allowed) costs whose longest is each of `jobs`."""
        rows = self._limits().rows()
        return self._cost(rows[min(count, len(rows)) - 1], np.array([*map(_length_or_0, jobs)]))

    def _small_first(self, job: Job) -> tuple[int, bool]:
        return job.priority, _length_or_0(job) > (self._options.small_batch_threshold or 0)

    def _limits(self, *, lengths: bool = True) -> Limits:
        options, limit = self._options, self._ceiling.limit
        size, tokens = options.max_batch_size, options.max_batch_tokens
        if limit is not None and lengths:
            tokens = min(tokens or limit, limit)
        elif limit is not None:
            size = min(size, limit)
        return Limits(size, tokens, options.preferred_batch_sizes)

    def _around(self, turn: Job, waiting: Sequence[Job]) -> Batch:
        """Return the best batch that `turn` is in."""
        others = [job for job in waiting if job is not turn and job.shape_class == turn.shape_class]
        if len(set(map(self._rank, others))) > 1:
            others.sort(key=self._rank)
        others = others[: self._options.max_waiting - 1]
        if turn.length is None or None in set(map(_length, others)):
            return self._in_order(turn, others)
        return self._by_length(turn, others)

    def _in_order(self, turn: Job, others: list[Job]) -> Batch:
        jobs = [turn, *others]
        limits = self._limits(lengths=False)
        rows = limits.rows()
        count = best_count(self._cost(rows[: len(jobs)], np.array(0)))
        if count == len(rows):
            closed_by = "budget" if limits.max_size < self._options.max_batch_size else "full"
        else:
            closed_by = "nothing left" if count == len(jobs) else "cost"
        return Batch(turn.task, jobs[:count], closed_by, sizes=self._options.preferred_batch_sizes)

    def _by_length(self, turn: Job, others: list[Job]) -> Batch:
        # Of equally long jobs those whose turn comes first stand next to the job whose turn it is, and so share its
        # batch: `others` is in the order of service, and sorting is stable.
        shorter = sorted((job for job in reversed(others) if _length(job) < _length(turn)), key=_length)
        longer = sorted((job for job in others if _length(job) >= _length(turn)), key=_length)
        jobs = [*shorter, turn, *longer]
        limits, place = self._limits(), len(shorter)
        prices = price([*map(_length, jobs)], self._cost, limits)
        start, end = batch_around(prices, place, backlog=2 * len(jobs) >= self._options.max_waiting)
        closed_by = self._closed_by(jobs, start, end, limits)
        return Batch(turn.task, jobs[start:end], closed_by, sizes=self._options.preferred_batch_sizes)

    def _may_grow(self, batch: Batch, waiting: Sequence[Job]) -> bool:
        limits = self._limits(lengths=batch.jobs[0].length is not None)
        longest = max(map(_length_or_0, batch.jobs))
        return limits.allow(len(batch.jobs) + 1, longest) and len(waiting) < self._options.max_waiting

    def _closed_by(self, jobs: Sequence[Job], start: int, end: int, limits: Limits) -> str:
        count = end - start
        if count == len(limits.rows()):
            return "full"
        # The cheapest job to add is the next longer one, or another one as long as the longest.
        if not limits.allow(count + 1, _length(jobs[min(end, len(jobs) - 1)])):
            return "budget"
        return "nothing left" if count == len(jobs) else "cost"


def _length_or_0(job: Job) -> int:
    return job.length or 0


_priority = attrgetter("priority")
_enqueued_at = attrgetter("enqueued_at")
_deadline = attrgetter("deadline")
_length = attrgetter("length")
