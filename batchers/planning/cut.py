"""Which jobs of a length-sorted queue run together: the planner's arithmetic, on arrays.

The dynamic programme over a length-sorted queue is that of TurboTransformers (Fang et al., PPoPP 2021).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cost import CostFunction, Floats

#: Units that one decision looks at, and units in the largest batch: jobs, or groups of jobs if a batch may be larger. A
#: table of prices has a cell for each pair, 1 MB in all.
_SEEN, _LARGEST = 512, 256

#: How much more per job a larger batch of equal jobs may cost, as a ratio, because measurements are noisy.
_NOISE_TOLERANCE = 1.02

#: Under backlog, what a job would cost in another batch: 0 is its share of the cheapest possible batch, 1 its share in
#: the best cut of the waiting jobs. Values from 0.25 to 0.9 were about equal in `benchmarks padding`; 0 and 1 were
#: worse.
_BEST_CUT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one batch."""

    max_size: int
    #: Limit of rows times the longest job. A job that exceeds it may still run alone. None: no limit.
    max_tokens: int | None = None
    #: Sizes, ascending, that batches are padded up to with rows whose outputs are dropped; empty: no padding.
    sizes: Sequence[int] = ()

    def rows(self) -> NDArray[np.int64]:
        """Return the rows that the model computes for 1, 2, ... jobs, up to as many as one batch may have."""
        counts = np.arange(1, self.max_size + 1)
        if not self.sizes:
            return counts
        sizes = np.array(self.sizes, dtype=np.int64)
        rows: NDArray[np.int64] = sizes[np.searchsorted(sizes, counts[counts <= sizes[-1]])]
        return rows

    def most(self, longest: int) -> int:
        """Return how many jobs may form one batch if the longest of them is as long as this."""
        rows = self.rows()
        if self.max_tokens is None or not longest:
            return len(rows)
        return max(1, int(rows.searchsorted(min(self.max_tokens // longest, rows[-1]), "right")))


def best_batch(
    lengths: Sequence[int], required: int, cost: CostFunction, limits: Limits, *, backlog: bool
) -> tuple[int, int]:
    """Return the start and end (exclusive) of the batch to run now, which contains job `required`.

    `lengths` must be ascending, and `backlog` is that of `batch_around`. Where a batch may have more than 256 jobs,
    jobs of about the same length are taken in groups, so that the tables stay small, and a 128th of the largest batch
    may stay empty. If a single group is best, the batch is a part of it.
    """
    largest = min(limits.most(lengths[required]), len(lengths))
    group = 1
    while largest > _LARGEST * group:
        group *= 2
    seen = _SEEN * group
    first = max(0, min(required - seen // 2, len(lengths) - seen))
    near = np.array(lengths[first : first + seen], dtype=np.int64)
    lead = -len(near) % group  # The first group is filled up with jobs that do not exist.
    near = np.concatenate((np.repeat(near[:1], lead), near))
    prices = _price_groups(near, cost, limits, group)
    start, end = batch_around(prices, (required - first + lead) // group, backlog=backlog)
    single = end - start == 1 and group > 1
    start, end = max(first, first + start * group - lead), first + end * group - lead
    if single:
        inner_start, inner_end = best_batch(lengths[start:end], required - start, cost, limits, backlog=False)
        return start + inner_start, start + inner_end
    return start, end


def _price_groups(lengths: NDArray[np.int64], cost: CostFunction, limits: Limits, group: int) -> Floats:
    """Return what `price` does for groups of jobs instead of jobs.

    A single group costs what it does in the best of some equal parts, because it may be cut further.
    """
    prices = price(lengths[group - 1 :: group], cost, limits, group)
    for size in (2**power for power in range(group.bit_length() - 1)):
        parts = price(lengths[size - 1 :: size], cost, Limits(size, limits.max_tokens, limits.sizes), size)
        prices[:, 0] = np.minimum(prices[:, 0], parts.reshape(len(prices), -1).sum(1))
    return prices


def price(lengths: Sequence[int] | NDArray[np.int64], cost: CostFunction, limits: Limits, group: int = 1) -> Floats:
    """Return the costs of batches, of shape (jobs, largest batch up to 256); inf for one that exceeds its limits.

    Entry [i, n - 1] is the cost of the n jobs that end with job i. `lengths` must be ascending. Where jobs are in
    groups, n counts groups, and each group has the length of its longest job.
    """
    rows = limits.rows()[group - 1 : _LARGEST * group : group]
    unique, where = np.unique(np.asarray(lengths, dtype=np.int64), return_inverse=True)
    prices = np.asarray(cost(rows[None, :], unique[:, None]), dtype=np.float64)
    if limits.max_tokens is not None:
        alone = np.arange(len(rows)) + group == 1
        prices = np.where((rows * unique[:, None] <= limits.max_tokens) | alone, prices, np.inf)
    return prices[where]


def cut(prices: Floats) -> list[int]:
    """Cut the jobs into consecutive batches of the least total price; return the batches' ends (exclusive), in order.

    If several cuts cost the same, the first batches are the larger ones.
    """
    count, largest = prices.shape
    # best[count - n] is the least price of the first n jobs. The array is reversed and padded with inf, so that one
    # slice holds the candidates of every end.
    best = np.full(count + 1 + largest, np.inf)
    best[count] = 0.0
    size_of_last = [0] * (count + 1)
    totals = np.empty(largest)
    for end in range(1, count + 1):
        place = count - end
        np.add(best[place + 1 : place + 1 + largest], prices[end - 1], out=totals)
        pick = int(totals.argmin())
        best[place] = totals[pick]
        size_of_last[end] = pick + 1
    ends: list[int] = []
    end = count
    while end > 0:
        ends.append(end)
        end -= size_of_last[end]
    return ends[::-1]


def batch_around(prices: Floats, required: int, *, backlog: bool) -> tuple[int, int]:
    """Return the start and end (exclusive) of the batch to run now, which contains job `required`.

    No division of the batch into consecutive parts, single jobs among them, costs less. `backlog` says that more jobs
    like these will replace those that run. The best cut of the waiting jobs is then not the best choice, because it
    combines the few jobs of a rare length with distant ones, although more of that length will arrive.
    """
    ends = cut(prices)
    start, end = _segment(ends, required)
    if backlog:
        start, end = _under_backlog(prices, required, ends)
        inner_start, inner_end = _segment(cut(prices[start:end]), required - start)
        start, end = start + inner_start, start + inner_end
    return start, end


def _segment(ends: Sequence[int], required: int) -> tuple[int, int]:
    index = bisect_right(ends, required)
    return ends[index - 1] if index else 0, ends[index]


def _under_backlog(prices: Floats, required: int, ends: Sequence[int]) -> tuple[int, int]:
    """Return the batch with job `required` that costs least beyond the opportunity costs of its jobs.

    A job's opportunity cost lies between its share of the cheapest batch that a job of its length can be in and its
    share in the best cut of the waiting jobs, which has the `ends`. On five kinds of lengths and three launch costs
    this cost up to 6 % less than running the segment of the best cut, and never noticeably more.
    """
    count, largest = prices.shape
    sizes = np.arange(1, largest + 1)
    cheapest = np.minimum.accumulate((prices / sizes).min(1)[::-1])[::-1]
    bounds = np.array([0, *ends])
    parts = np.diff(bounds)
    in_best_cut = np.repeat(prices[bounds[1:] - 1, parts - 1] / parts, parts)
    elsewhere = np.concatenate(([0.0], np.cumsum(_BEST_CUT_SHARE * in_best_cut + (1 - _BEST_CUT_SHARE) * cheapest)))
    starts = np.arange(max(0, required - largest + 1), required + 1)[:, None]
    stops = np.arange(required + 1, min(count, required + largest) + 1)[None, :]
    size = stops - starts
    excess = prices[stops - 1, np.minimum(size, largest) - 1] - (elsewhere[stops] - elsewhere[starts])
    best = int(np.where(size <= largest, excess, np.inf).argmin())
    return int(starts[best // stops.size, 0]), int(stops[0, best % stops.size])


def best_count(prices: Floats) -> int:
    """Return how many of equal jobs to run together; `prices` are for 1, 2, ... jobs, up to all that wait.

    It is the largest number whose cost per job is near the least, and no higher than that of one job alone.
    """
    each = prices / np.arange(1, len(prices) + 1)
    good = (each <= each.min() * _NOISE_TOLERANCE) & (each <= each[0])
    return int(np.flatnonzero(good)[-1]) + 1
