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

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..configs import TaskOptions
from .ceiling import TokenCeiling
from .cost import CostFunction, CostModel
from .cut import Limits, batch_around, best_count, price
from .job import Batch, Job


class Planner(Protocol):
    """Decides for one task. `waiting` is in claim order; nothing is removed from it here."""

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        """Return the batch to run now, its jobs taken from `waiting`; None where it is better to wait."""
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
        self._options = options
        self._cost = cost or CostModel(options.max_batch_size, options.max_batch_tokens)
        self._ceiling = ceiling or TokenCeiling()
        self._rank = _priority if options.small_batch_threshold is None else self._small_first

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        """See `Planner.choose`."""
        if not waiting:
            return None
        turn = first = min(waiting, key=self._rank)  # where several rank equal, the one claimed first
        too_old = now - self._options.max_age_ms / 1000
        aged = next((job for job in waiting if job.enqueued_at <= too_old), None)
        batch = self._around(aged or turn, waiting)
        late = None if aged else self._at_risk(batch, waiting, now)
        if late is not None:
            batch = self._around(late, waiting, 1000 * (_deadline(late) - now))
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
        """Return the job with the earliest deadline of those that are lost if `batch` runs now, and not yet lost."""
        urgent = [job for job in waiting if job.deadline is not None]
        if not urgent:
            return None
        longest = max(batch.jobs, key=_length_or_0)
        takes = self._ms([longest], len(batch.jobs))
        inside = set(map(id, batch.jobs))
        alone = self._ms(urgent, 1)
        slack = 1000 * (np.array([*map(_deadline, urgent)]) - now)
        ends = takes + np.where([id(job) in inside for job in urgent], 0, alone)
        at_risk = [urgent[index] for index in np.flatnonzero((alone <= slack) & (slack < ends))]
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

    def _around(self, turn: Job, waiting: Sequence[Job], slack_ms: float = float("inf")) -> Batch:
        """Return the best batch that `turn` is in; one that does not take longer than `slack_ms` if that can be."""
        others = [job for job in waiting if job is not turn and job.shape_class == turn.shape_class]
        if len(set(map(self._rank, others))) > 1:
            others.sort(key=self._rank)
        others = others[: self._options.max_waiting - 1]
        if turn.length is None or None in set(map(_length, others)):
            return self._in_order(turn, others, slack_ms)
        return self._by_length(turn, others, slack_ms)

    def _in_order(self, turn: Job, others: list[Job], slack_ms: float) -> Batch:
        jobs = [turn, *others]
        rows = self._limits(lengths=False).rows()
        prices = self._cost(rows[: len(jobs)], np.array(0))
        count = best_count(prices)
        if prices[count - 1] > slack_ms:
            count, closed_by = best_count(prices[: _fitting(prices, slack_ms)]), "deadline"
        else:
            closed_by = "full" if count == len(rows) else "nothing left" if count == len(jobs) else "cost"
        return Batch(turn.task, jobs[:count], closed_by, sizes=self._options.preferred_batch_sizes)

    def _by_length(self, turn: Job, others: list[Job], slack_ms: float) -> Batch:
        # Of equally long jobs those whose turn comes first stand next to the job whose turn it is, and so share its
        # batch: `others` is in the order of service, and sorting is stable.
        shorter = sorted((job for job in reversed(others) if _length(job) < _length(turn)), key=_length)
        longer = sorted((job for job in others if _length(job) >= _length(turn)), key=_length)
        jobs = [*shorter, turn, *longer]
        limits, place = self._limits(), len(shorter)
        prices = price([*map(_length, jobs)], self._cost, limits)
        start, end = batch_around(prices, place, backlog=2 * len(jobs) >= self._options.max_waiting)
        closed_by = self._closed_by(jobs, start, end, limits)
        if prices[end - 1, end - start - 1] > slack_ms:
            # The longer ones go, and as many of the others as it takes, the shortest first.
            count = _fitting(prices[place, : end - start], slack_ms)
            start = max(start, place + 1 - count)
            end = min(start + count, bisect_right(jobs, _length(turn), hi=end, key=_length))
            inner = batch_around(prices[start:end], place - start, backlog=False)
            start, end = start + inner[0], start + inner[1]
            closed_by = "deadline"
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


def _fitting(prices: NDArray[np.float64], most: float) -> int:
    """Return for how many jobs, one at least, a batch costs no more than `most`; `prices` are for 1, 2, ... jobs."""
    fitting = np.flatnonzero(prices <= most)
    return int(fitting[-1]) + 1 if len(fitting) else 1


def _length_or_0(job: Job) -> int:
    return job.length or 0


_priority = attrgetter("priority")
_enqueued_at = attrgetter("enqueued_at")
_deadline = attrgetter("deadline")
_length = attrgetter("length")
