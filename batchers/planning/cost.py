"""What a batch will cost: a model of one task on one device, learned from the batches that it has run.

Two layers, each sane where the other is blind. Below, a law with few coefficients, none of them negative:

    ms = launch + job * n + step * L + token * n * L + pair * n * L²

(`n` jobs padded to length `L`: launching, handling a job, steps in sequence as in a recurrent net, matrix products,
attention). It may be asked about shapes that were never run. Above it, what was measured: near a shape that has run,
the law is corrected by the ratio that was found there. So a device may be odd (flat up to thousands of tokens, or no
faster in batches), and every shape has an answer. The outcome is made to grow with n and with L.

Judged by what the planner's batches cost beyond those it would choose if it knew the true costs, on the seven devices
of tests/batchers/test_cost.py, with and without a warm-up: 2 % on average and 10 % at worst with both layers, 4 and
18 % with the law alone, 6 and 44 % with a table alone.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import log2
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: What starting a batch costs, in tokens: measured for MiniLM on two CPU cores. On a GPU it is higher.
DEFAULT_LAUNCH_TOKENS = 1500.0

#: Milliseconds a token before anything was measured: low, so that no deadline is given up for a guess.
_UNKNOWN_TOKEN_MS = 0.001

#: Measurements kept for each shape. Their median counts: two slow runs among five do no harm, three are believed.
_KEPT = 5

#: After so many observations elsewhere a correction counts half: what was once found bad is tried again.
_HALF_LIFE = 512

#: How near, in squared octaves, two shapes have to be to count as one, and what the law weighs against measurements.
_NEAR, _LAW = 0.1, 1.0

#: Measurements in a row after which the tables are made anew, once many are known: making them takes about 0.3 ms.
_LAZY = 16

#: What a guess at a corner weighs against all measurements together.
_HINT = 0.001

#: All choices of coefficients that are not zero. Best subset is exact for non-negative least squares of this size.
_SUBSETS = np.array([*product((0.0, 1.0), repeat=5)][1:])


class CostFunction(Protocol):
    """What batches cost: any unit, as long as sums can be compared; deadlines are kept only by one in milliseconds."""

    def __call__(self, sizes: NDArray[np.int64], longest: NDArray[np.int64], /) -> Floats:
        """Return the cost of batches of `sizes` jobs, `longest` being the longest; the two (int64) are broadcast."""
        ...


def linear_cost(launch: float = DEFAULT_LAUNCH_TOKENS) -> CostFunction:
    """Return the cost function `launch + number of jobs * longest`, in tokens."""

    def cost(sizes: NDArray[np.int64], longest: NDArray[np.int64], /) -> Floats:
        return np.asarray(launch + sizes * longest, dtype=np.float64)

    return cost


@dataclass(slots=True)
class _Shape:
    """The last measurements near one shape: (what it would cost in tokens, count, longest, ms) each."""

    kept: deque[tuple[float, int, int, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    seen_at: int = 0

    def add(self, count: int, longest: int, ms: float, seen_at: int) -> None:
        self.kept.append((ms / _tokens(count, longest), count, longest, ms))
        self.seen_at = seen_at

    @property
    def typical(self) -> tuple[int, int, float]:
        """The median measurement, the lower one of two: a first run is slow for reasons that do not come again."""
        _, count, longest, ms = sorted(self.kept)[(len(self.kept) - 1) // 2]
        return count, longest, ms


class CostModel:
    """Milliseconds that a batch takes, by its number of jobs and its longest; a `CostFunction`. Not thread-safe.

    Jobs without a length count as 0 long. Before anything was observed it answers as `linear_cost()` does, at
    0.001 ms a token. Wire it so: measure `grid()` at warm-up and `observe` each, twice if there is time; then `observe`
    every real batch that ran in one piece.
    """

    def __init__(
        self, max_batch_size: int, max_batch_tokens: int | None = None, preferred_batch_sizes: Sequence[int] = ()
    ) -> None:
        self._max_size = max_batch_size
        self._max_tokens = max_batch_tokens
        self._preferred = preferred_batch_sizes
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._observed = 0
        self._stale = 0
        self._law = np.zeros(5)
        self._sizes = _knots(max_batch_size)
        self._lengths = _knots(1)
        self._table: Floats | None = None

    def grid(self, longest: int | None = None) -> list[tuple[int, int]]:
        """Return the shapes (count, longest) worth measuring at warm-up, most telling first: it may be cut short.

        The first is the largest that will ever run, so that memory is allocated once. `longest` is the longest length
        to expect; None where jobs have none: the shapes' lengths are then 0.
        """
        counts = _coarse_to_fine(sorted(self._preferred) or _levels(self._max_size, 1))
        lengths = _coarse_to_fine(_levels(longest, 8)) if longest else [0]
        ranked = sorted(
            product(enumerate(counts), enumerate(lengths)), key=lambda pair: (max(pair[0][0], pair[1][0]), pair[0][0])
        )
        return list(dict.fromkeys((self._fitting(count, length), length) for (_, count), (_, length) in ranked))

    def observe(self, count: int, longest: int | None, ms: float) -> None:
        """Take note that a batch of `count` jobs, `longest` the longest, took `ms` milliseconds."""
        length = longest or 0
        if count < 1 or not 0 < ms < float("inf"):
            return
        self._observed += 1
        shape = self._shapes.setdefault((_place(count), _place(length)), _Shape())
        shape.add(count, length, ms, self._observed)
        self._stale += 1
        if self._stale > min(_LAZY, self._observed // 4):
            self._table = None

    def __call__(self, sizes: ArrayLike, longest: ArrayLike, /) -> Floats:
        """Return the milliseconds for batches of `sizes` jobs, `longest` the longest; the two are broadcast."""
        counts, lengths = np.asarray(sizes), np.asarray(longest)
        self._cover(int(counts.max(initial=1)), int(lengths.max(initial=1)))
        table = self._tabulate() if self._table is None else self._table
        column, across = _between(self._lengths, lengths)
        if lengths.ndim == 0:  # three times as fast, for jobs without lengths: planning is most of what they cost
            ms = table[:, column] * (1 - across) + table[:, column + 1] * across
            return np.asarray(np.interp(counts, self._sizes, ms))
        row, down = _between(self._sizes, counts)
        upper = table[row, column] * (1 - across) + table[row, column + 1] * across
        lower = table[row + 1, column] * (1 - across) + table[row + 1, column + 1] * across
        costs: Floats = upper * (1 - down) + lower * down
        return costs

    def export(self) -> dict[str, float]:
        """Return what was measured as flat numbers: ms by "<count>x<longest>", for logs, `inspect` and `restore`."""
        typical = sorted(shape.typical for shape in self._shapes.values())
        return {f"{count}x{longest}": round(ms, 4) for count, longest, ms in typical}

    def restore(self, measured: Mapping[str, float]) -> None:
        """Take in what another model of this task on such a device has exported."""
        for shape, ms in measured.items():
            count, longest = map(int, shape.split("x"))
            for _ in range(_KEPT):
                self.observe(count, longest, ms)

    def _fitting(self, count: int, length: int) -> int:
        return count if self._max_tokens is None or not length else max(1, min(count, self._max_tokens // length))

    def _cover(self, count: int, longest: int) -> None:
        if count > self._sizes[-1]:
            self._sizes, self._table = _knots(count), None
        if longest > self._lengths[-1]:
            self._lengths, self._table = _knots(longest), None

    def _tabulate(self) -> Floats:
        """Return the table of costs at `_sizes` (rows) and `_lengths` (columns)."""
        self._stale = 0
        sizes, lengths = self._sizes[:, None], self._lengths[None, :]
        if not self._shapes:
            table: Floats = _UNKNOWN_TOKEN_MS * _tokens(sizes, lengths)
        else:
            count, longest, ms = np.array([shape.typical for shape in self._shapes.values()]).T
            weight = np.array([*map(self._weight, self._shapes.values())])
            self._law = _fit(count, longest, ms, weight, self._max_size)
            least = ms.min() / 1000  # a law without a launch cost would say that jobs of length 0 are free
            error = np.log(ms / np.maximum(_features(count, longest) @ self._law, least))
            # One or two measurements may both be flukes: they may not say more than "twice as fast or slow".
            few = np.array([len(shape.kept) < 3 for shape in self._shapes.values()])
            error = np.where(few, np.clip(error, -log2(2), log2(2)), error)
            octaves = (_octave(sizes)[..., None] - _octave(count)) ** 2
            octaves = octaves + (_octave(lengths)[..., None] - _octave(longest)) ** 2
            pull = weight / (octaves + _NEAR) ** 2
            table = np.maximum(_features(sizes, lengths) @ self._law, least)
            table = table * np.exp((pull @ error) / (pull.sum(-1) + _LAW))
        self._table = _monotone(table)
        return self._table

    def _weight(self, shape: _Shape) -> float:
        return float(len(shape.kept) / _KEPT * 0.5 ** ((self._observed - shape.seen_at) / _HALF_LIFE))


def _fit(count: Floats, longest: Floats, ms: Floats, weight: Floats, max_size: int) -> Floats:
    """Return the law's coefficients: non-negative least squares of the relative errors."""
    # What no measurement has told yet is as in `linear_cost`: said so at the corners, and heard there only.
    corners = np.array([*product((1, max_size), (1, longest.max()))], dtype=np.float64).T
    per_token = np.median(ms / _tokens(count, longest))
    count, longest = np.concatenate((np.stack((count, longest)), corners), axis=1)
    ms = np.concatenate((ms, per_token * _tokens(*corners)))
    weight = np.concatenate((weight / weight.sum(), np.full(corners.shape[1], _HINT)))
    rows = _features(count, longest) / ms[:, None]
    scale = np.sqrt((weight[:, None] * rows**2).sum(0))
    rows = rows / np.where(scale > 0, scale, 1.0)
    gram, target = (rows.T * weight) @ rows, rows.T @ weight
    # One system for each choice; what is not chosen is held at 0 by a row of its own. The ridge tells equals apart.
    system = gram * _SUBSETS[:, :, None] * _SUBSETS[:, None, :]
    system[:, range(5), range(5)] += 1 - _SUBSETS + 1e-9
    found = np.linalg.solve(system, (target * _SUBSETS)[:, :, None])[:, :, 0]
    error = np.einsum("si,ij,sj->s", found, gram, found) - 2 * found @ target
    best = found[np.where((found >= 0).all(1), error, np.inf).argmin()]
    law: Floats = best / np.where(scale > 0, scale, 1.0)
    return law


def _features(count: Floats, longest: Floats) -> Floats:
    count, longest = np.broadcast_arrays(count, longest)
    return np.stack((np.ones_like(count), count, longest, count * longest, count * longest**2), axis=-1)


def _tokens(count: Any, longest: Any) -> Any:
    return DEFAULT_LAUNCH_TOKENS + count * longest


def _monotone(table: Floats) -> Floats:
    """Return what grows along both axes and is did_you_mean to `table` from above and below alike."""
    above = np.maximum.accumulate(np.maximum.accumulate(table, 0), 1)
    below = np.minimum.accumulate(np.minimum.accumulate(table[::-1, ::-1], 0), 1)[::-1, ::-1]
    return (above + below) / 2


def _octave(values: Floats) -> Floats:
    octaves: Floats = np.log2(np.maximum(values, 1))
    return octaves


def _place(value: int) -> int:
    """Return in which half octave a count or length is."""
    return round(2 * log2(max(1, value)))


def _knots(most: int) -> Floats:
    """Return 0 and half octaves up to `most` or just above."""
    return np.array([0.0, *np.unique(np.round(2 ** (np.arange(2 * log2(max(2, most)) + 1) / 2)))])


def _between(knots: Floats, values: NDArray[np.int64]) -> tuple[NDArray[np.intp], Floats]:
    """Return the knot at or below each value, and how far it is from there to the next, from 0 to 1."""
    lower = np.searchsorted(knots[1:-1], values, "right")
    return lower, (values - knots[lower]) / (knots[lower + 1] - knots[lower])


def _levels(most: int, least: int) -> list[int]:
    """Return `most`, its quarter, the quarter of that, and so on while above twice `least`, which comes last."""
    levels = [most]
    while levels[-1] // 4 >= 2 * least:
        levels.append(levels[-1] // 4)
    return sorted({*levels, min(least, most)})


def _coarse_to_fine(levels: list[int]) -> list[int]:
    """Return the last, the first, the middle one, and the middles of what lies between, again and again."""
    order, spans = [levels[-1], levels[0]], deque([(0, len(levels) - 1)])
    while spans:
        low, high = spans.popleft()
        if high - low > 1:
            middle = (low + high) // 2
            order.append(levels[middle])
            spans += [(low, middle), (middle, high)]
    return list(dict.fromkeys(order))
