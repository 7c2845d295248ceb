"""The planner: which waiting jobs run together, and when. Pure: the time is an argument.

Greedy and late-binding: asked when the device can take a batch, it answers with the best batch of what waits now,
and sets no timer unless `max_wait_ms` asks for one. Padding is what costs, so jobs of one shape class are sorted by
length and cut into batches by dynamic programming over a cost function; the batch that holds the job whose turn it
is runs, the others stay and may be cut differently next time.

The dynamic programme over a length-sorted queue is that of TurboTransformers (Fang et al., PPoPP 2021).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .job import Batch, Job

#: What starting a batch costs, in tokens: measured for MiniLM on two CPU cores. On a GPU it is higher.
DEFAULT_LAUNCH_TOKENS = 1500.0


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


class CostFunction(Protocol):
    """What batches cost: any unit, as long as sums of it can be compared."""

    def __call__(self, sizes: NDArray[np.int64], longest: int) -> NDArray[np.float64]:
        """Return the cost of a batch for each of `sizes` (int64, shape (k,)), its longest job being `longest`."""
        ...


class Planner(Protocol):
    """Decides for one task. `waiting` is in claim order; nothing is removed from it here."""

    def choose(self, waiting: Sequence[Job], now: float) -> Batch | None:
        """Return the batch to run now, its jobs taken from `waiting`; None where it is better to wait."""
        ...

    def due_at(self, waiting: Sequence[Job]) -> float:
        """Return the time from which `choose` answers with a batch, whether or not more jobs come."""
        ...


def linear_cost(launch: float = DEFAULT_LAUNCH_TOKENS) -> CostFunction:
    """Return the cost function `launch + number of jobs * longest`, in tokens."""

    def cost(sizes: NDArray[np.int64], longest: int) -> NDArray[np.float64]:
        return launch + sizes * float(longest)

    return cost


def cut(lengths: Sequence[int], cost: CostFunction, max_size: int, max_tokens: int | None) -> list[int]:
    """Cut jobs that are sorted by length into consecutive batches of the least total cost.

    `lengths` must be ascending. Returns the ends (exclusive) of the batches, in order. Every batch has at most
    `max_size` jobs, and at most `max_tokens` tokens counted as jobs times longest, or is a single job.
    """
    count = len(lengths)
    best = np.zeros(count + 1)
    size_of_last = np.zeros(count + 1, dtype=np.int64)
    sizes = np.arange(1, max_size + 1)
    for end in range(1, count + 1):
        longest = lengths[end - 1]
        most = min(max_size, end)
        if max_tokens is not None:
            most = max(1, min(most, max_tokens // max(1, longest)))
        totals = best[end - most : end][::-1] + cost(sizes[:most], longest)
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
        candidates = [job for job in waiting if job.shape_class == turn.shape_class]
        if now < self._patience(turn) and self._may_grow(candidates, waiting):
            return None
        if turn.length is None or any(job.length is None for job in candidates):
            return self._in_order(turn, candidates)
        return self._by_length(turn, candidates)

    def due_at(self, waiting: Sequence[Job]) -> float:
        """See `Planner.due_at`."""
        return min(map(self._patience, waiting), default=float("inf"))

    def _turn(self, waiting: Sequence[Job], now: float) -> Job:
        oldest = waiting[0]
        if now - oldest.enqueued_at >= self._options.max_age_ms / 1000:
            return oldest
        return min(waiting, key=_rank)

    def _patience(self, job: Job) -> float:
        return job.enqueued_at + self._options.max_wait_ms / 1000

    def _may_grow(self, candidates: Sequence[Job], waiting: Sequence[Job]) -> bool:
        return len(candidates) < self._options.max_batch_size and len(waiting) < self._options.max_waiting

    def _in_order(self, turn: Job, candidates: list[Job]) -> Batch:
        size = self._options.max_batch_size
        if any(job.priority != turn.priority for job in candidates):
            candidates = [turn, *sorted((job for job in candidates if job is not turn), key=_rank)]
        closed_by = "full" if len(candidates) >= size else "nothing left"
        return Batch(turn.task, candidates[:size], closed_by)

    def _by_length(self, turn: Job, candidates: list[Job]) -> Batch:
        size, tokens = self._options.max_batch_size, self._options.max_batch_tokens
        candidates.sort(key=_length)
        lengths = [_length(job) for job in candidates]
        place = next(index for index, job in enumerate(candidates) if job is turn)
        start = 0
        for end in cut(lengths, self._cost, size, tokens):
            if place < end:
                break
            start = end
        return Batch(turn.task, candidates[start:end], self._closed_by(lengths, start, end))

    def _closed_by(self, lengths: Sequence[int], start: int, end: int) -> str:
        count, tokens = end - start, self._options.max_batch_tokens
        if count >= self._options.max_batch_size:
            return "full"
        if count == len(lengths):
            return "nothing left"
        # The cheapest job to add is the next longer one, or the next shorter one where there is none longer.
        longest = lengths[end] if end < len(lengths) else lengths[end - 1]
        return "budget" if tokens is not None and (count + 1) * longest > tokens else "cost"


def _rank(job: Job) -> tuple[int, int]:
    return job.priority, job.seq


def _length(job: Job) -> Any:
    return job.length
