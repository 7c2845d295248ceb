"""Which jobs of a length-sorted line run together: the arithmetic of the planner, on arrays.

The dynamic programme over a length-sorted queue is that of TurboTransformers (Fang et al., PPoPP 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cost import CostFunction

Floats = NDArray[np.float64]

#: How much more a job may cost in a larger batch where nothing else tells sizes apart: measurements have noise.
_NOISE = 1.02

#: In a backlog: where what a job would cost some other time lies, from the least that it can cost (0) to what it costs
#: now (1). Anything from 0.25 to 0.9 was about as good in `benchmarks padding`, 0 and 1 were worse.
_AS_NOW = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What one batch may be."""

    max_size: int
    #: Jobs times the longest; a job above it may run alone. None: no limit.
    max_tokens: int | None = None
    #: Sizes that batches are padded up to with rows that nobody reads, ascending; empty: they are not.
    sizes: Sequence[int] = ()

    def rows(self) -> NDArray[np.int64]:
        """Return the rows that the model computes for 1, 2, ... jobs, as many as one batch may have."""
        counts = np.arange(1, self.max_size + 1)
        if not self.sizes:
            return counts
        sizes = np.array(self.sizes, dtype=np.int64)
        rows: NDArray[np.int64] = sizes[np.searchsorted(sizes, counts[counts <= sizes[-1]])]
        return rows

    def allow(self, count: int, longest: int) -> bool:
        """Tell whether `count` jobs, two or more, may be one batch."""
        rows = self.rows()
        return count <= len(rows) and (self.max_tokens is None or rows[count - 1] * longest <= self.max_tokens)


def price(lengths: Sequence[int], cost: CostFunction, limits: Limits) -> Floats:
    """Return what batches cost: shape (jobs, largest batch); inf where one would exceed its limits.

    Entry [i, n - 1] is for the n jobs that end with job i of `lengths`, which must be ascending.
    """
    rows = limits.rows()
    unique, where = np.unique(np.asarray(lengths, dtype=np.int64), return_inverse=True)
    prices = np.asarray(cost(rows[None, :], unique[:, None]), dtype=np.float64)
    if limits.max_tokens is not None:
        prices = np.where((rows * unique[:, None] <= limits.max_tokens) | (np.arange(len(rows)) == 0), prices, np.inf)
    return prices[where]


def cut(prices: Floats) -> list[int]:
    """Cut jobs into consecutive batches of the least total price; return their ends (exclusive), in order.

    Of cuts that cost the same it takes those with larger batches first.
    """
    count, largest = prices.shape
    # best[count - n]: the least price of the first n jobs. After it comes nothing that one could start from.
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


def batch_around(prices: Floats, turn: int, *, backlog: bool) -> tuple[int, int]:
    """Return start and end (exclusive) of the batch to run now; job `turn` is in it.

    No way to run its jobs in consecutive parts, one by one among them, costs less. `backlog`: more jobs like these will
    take the place of those that run. Then a cut that is best for those at hand is not best: it puts the few in a sparse
    stretch together with others far away, though their like will come. See `_in_backlog`.
    """
    ends = cut(prices)
    start, end = _part(ends, turn)
    if backlog:
        start, end = _in_backlog(prices, turn, ends)
        inner_start, inner_end = _part(cut(prices[start:end]), turn - start)
        start, end = start + inner_start, start + inner_end
    return start, end


def _part(ends: Sequence[int], turn: int) -> tuple[int, int]:
    start = 0
    for end in ends:
        if turn < end:
            break
        start = end
    return start, end


def _in_backlog(prices: Floats, turn: int, ends: Sequence[int]) -> tuple[int, int]:
    """Return the batch around `turn` that costs least beyond what its jobs would cost some other time.

    That is taken to lie between the least that jobs so long can cost in any batch, and what they cost in the best cut
    of those that wait (see `_AS_NOW`). On five kinds of lengths and three launch costs this cost up to 6 % less than
    running the part of the best cut, and never noticeably more.
    """
    count, largest = prices.shape
    sizes = np.arange(1, largest + 1)
    least = np.minimum.accumulate((prices / sizes).min(1)[::-1])[::-1]
    bounds = np.array([0, *ends])
    parts = np.diff(bounds)
    share = np.repeat(prices[bounds[1:] - 1, parts - 1] / parts, parts)
    worth = np.concatenate(([0.0], np.cumsum(_AS_NOW * share + (1 - _AS_NOW) * least)))
    starts = np.arange(max(0, turn - largest + 1), turn + 1)[:, None]
    stops = np.arange(turn + 1, min(count, turn + largest) + 1)[None, :]
    size = stops - starts
    excess = prices[stops - 1, np.minimum(size, largest) - 1] - (worth[stops] - worth[starts])
    best = int(np.where(size <= largest, excess, np.inf).argmin())
    return int(starts[best // stops.size, 0]), int(stops[0, best % stops.size])


def best_count(prices: Floats) -> int:
    """Return how many of equal jobs to run together; `prices` are for 1, 2, ... of them, up to those that wait.

    It is the most that cost next to least each, and no more each than one alone.
    """
    each = prices / np.arange(1, len(prices) + 1)
    good = (each <= each.min() * _NOISE) & (each <= each[0])
    return int(np.flatnonzero(good)[-1]) + 1
