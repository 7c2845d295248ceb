"""The cost model: how many milliseconds a batch takes, learned from the batches of one task on one device.

The model has two layers. A formula with five coefficients, none of them negative, extrapolates to every shape:

    ms = launch + job * n + step * L + token * n * L + pair * n * L²

A batch has `n` jobs, padded to length `L`. The terms stand for launching the batch, handling each job, steps in
sequence (recurrent nets), matrix products and attention. Near every shape that has run, a local correction multiplies
the formula by the measured ratio, so the device may be irregular: flat up to thousands of tokens, or no faster in
batches. The corrected costs are then adjusted so that they never fall as `n` or `L` grows.

Accuracy, as the extra cost of the planner's batches over those it chooses when it knows the true costs, on the seven
devices of tests/batchers/planning/test_cost.py, with and without a warm-up: 2 % on average and 10 % at worst with both
layers, 4 % and 18 % with the formula alone, 6 % and 44 % with a table alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import product
from math import log2
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: The costs of batches by numbers of jobs and longest jobs, two arrays that are broadcast. The unit is any that can be
#: summed, but deadlines are kept only if it is milliseconds.
CostFunction = Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]

#: Cost of starting a batch, in tokens, measured for MiniLM on two CPU cores. It is higher on a GPU.
DEFAULT_LAUNCH_TOKENS = 1500.0

#: Milliseconds per token before the first measurement. It is low so that no deadline is given up because of a guess.
_DEFAULT_TOKEN_MS = 0.001

#: Measurements kept for each shape. Their median counts, so two slow runs among five are ignored and three believed.
_KEPT_PER_SHAPE = 5

#: Observations of other shapes after which a local correction counts half, so that a shape that was slow is retried.
_HALF_LIFE = 512

#: A correction weighs 1 / (d² + this)², where d is the distance in octaves. Shapes nearer than about 0.3 octaves
#: therefore count as one.
_SAME_SHAPE_SQUARED_OCTAVES = 0.1

#: Weight of the uncorrected formula against the summed weights of the corrections.
_FORMULA_WEIGHT = 1.0

#: Observations after which the table is computed again, at most: computing it takes about 0.3 ms.
_REFRESH_AFTER = 16

#: Weight of the prior at each corner of the grid, against 1 for all measurements together.
_PRIOR_WEIGHT = 0.001

#: Every choice of coefficients that may differ from 0. Trying all of them solves non-negative least squares exactly.
_SUBSETS = np.array([*product((0.0, 1.0), repeat=5)][1:])


class CostModel:
    """Milliseconds that a batch takes, by its number of jobs and its longest job; a `CostFunction`. Not thread-safe.

    Jobs without a length count as length 0. Before the first observation the cost is 0.001 ms per token, plus 1500
    tokens for the launch. At warm-up, run and `observe` the shapes of `grid()`, twice if there is time; afterwards
    `observe` every real batch that ran in one piece.
    """

    def __init__(
        self, max_batch_size: int, max_batch_tokens: int | None = None, preferred_batch_sizes: Sequence[int] = ()
    ) -> None:
        self._max_size = max_batch_size
        self._max_tokens = max_batch_tokens
        self._preferred = preferred_batch_sizes
        # The last measurements near each shape: (ms relative to the linear cost, count, longest, ms, their number).
        self._measured: dict[tuple[int, int], deque[tuple[float, int, int, float, int]]] = {}
        self._observed = 0
        self._not_in_table = 0
        self._sizes = _knots(max_batch_size)
        self._lengths = _knots(1)
        self._table: Floats | None = None

    def grid(self, longest: int | None = None) -> list[tuple[int, int]]:
        """Return the shapes (count, longest) to measure at warm-up, most informative first, as it may be cut short.

        The first shape is the largest that will ever run, so that memory is allocated once. `longest` is the longest
        length to expect; None means that jobs have no lengths, and the shapes' lengths are then 0.
        """
        counts = _coarse_to_fine(sorted(self._preferred) or _levels(self._max_size, 1))
        lengths = _coarse_to_fine(_levels(longest, 8)) if longest else [0]
        ranked = sorted(np.ndindex(len(counts), len(lengths)), key=lambda place: (max(place), place[0]))
        shapes = ((counts[row], lengths[column]) for row, column in ranked)
        return list(dict.fromkeys((self._fitting(count, length), length) for count, length in shapes))

    def observe(self, count: int, longest: int | None, ms: float) -> None:
        """Record that a batch of `count` jobs padded to `longest` took `ms`; impossible values are ignored."""
        length = longest or 0
        if count < 1 or not 0 < ms < float("inf"):
            return
        self._observed += 1
        half_octaves = round(2 * log2(count)), round(2 * log2(max(1, length)))
        measured = self._measured.setdefault(half_octaves, deque(maxlen=_KEPT_PER_SHAPE))
        measured.append((ms / _linear_cost(count, length), count, length, ms, self._observed))
        self._not_in_table += 1
        if self._not_in_table > min(_REFRESH_AFTER, self._observed // 4):
            self._table = None

    def __call__(self, sizes: ArrayLike, longest: ArrayLike, /) -> Floats:
        """Return the milliseconds of batches of `sizes` jobs padded to `longest`; the two arrays are broadcast."""
        counts, lengths = np.asarray(sizes), np.asarray(longest)
        table = self._covering(int(counts.max(initial=1)), int(lengths.max(initial=1)))
        column, across = _position(self._lengths, lengths)
        if lengths.ndim == 0:  # Three times as fast for jobs without lengths, whose cost is mostly planning.
            ms = table[:, column] * (1 - across) + table[:, column + 1] * across
            return np.asarray(np.interp(counts, self._sizes, ms))
        row, down = _position(self._sizes, counts)
        upper = table[row, column] * (1 - across) + table[row, column + 1] * across
        lower = table[row + 1, column] * (1 - across) + table[row + 1, column + 1] * across
        return upper * (1 - down) + lower * down

    def _fitting(self, count: int, length: int) -> int:
        return count if self._max_tokens is None or not length else max(1, min(count, self._max_tokens // length))

    def _covering(self, count: int, longest: int) -> Floats:
        """Return the milliseconds at `_sizes` (rows) and `_lengths` (columns), which reach up to this batch."""
        if count > self._sizes[-1]:
            self._sizes, self._table = _knots(count), None
        if longest > self._lengths[-1]:
            self._lengths, self._table = _knots(longest), None
        if self._table is None:
            self._not_in_table = 0
            sizes, lengths = self._sizes[:, None], self._lengths
            unmeasured = _DEFAULT_TOKEN_MS * _linear_cost(sizes, lengths)
            self._table = _monotone(self._corrected(sizes, lengths) if self._measured else unmeasured)
        return self._table

    def _corrected(self, sizes: Floats, lengths: Floats) -> Floats:
        """Return the formula's milliseconds with the local corrections applied."""
        # The lower median counts, because a first run is often slow for reasons that do not recur.
        medians = [sorted(measured)[(len(measured) - 1) // 2] for measured in self._measured.values()]
        _, count, longest, ms, _ = np.array(medians).T
        kept = np.array([*map(len, self._measured.values())])
        age = self._observed - np.array([measured[-1][-1] for measured in self._measured.values()])
        weight = kept / _KEPT_PER_SHAPE * 0.5 ** (age / _HALF_LIFE)
        coefficients = _fit(count, longest, ms, weight, self._max_size)
        least = ms.min() / 1000  # Without a launch cost the formula would make jobs of length 0 free.
        error = np.log(ms / np.maximum(_terms(count, longest) @ coefficients, least))
        # One or two measurements may both be outliers, so they may change the cost by a factor of e at most.
        error = np.where(kept < 3, np.clip(error, -1, 1), error)
        distance = (_octaves(sizes)[..., None] - _octaves(count)) ** 2
        distance = distance + (_octaves(lengths)[..., None] - _octaves(longest)) ** 2
        pull = weight / (distance + _SAME_SHAPE_SQUARED_OCTAVES) ** 2
        formula = np.maximum(_terms(sizes, lengths) @ coefficients, least)
        corrected: Floats = formula * np.exp((pull @ error) / (pull.sum(-1) + _FORMULA_WEIGHT))
        return corrected


def _fit(count: Floats, longest: Floats, ms: Floats, weight: Floats, max_size: int) -> Floats:
    """Return the formula's coefficients, by non-negative least squares of the relative errors."""
    # The prior: one weak pseudo-measurement of the linear cost at each corner of the grid. It decides only what the
    # measurements leave open.
    corners = np.array([*product((1, max_size), (1, longest.max()))], dtype=np.float64).T
    per_token = np.median(ms / _linear_cost(count, longest))
    count, longest = np.concatenate((np.stack((count, longest)), corners), axis=1)
    ms = np.concatenate((ms, per_token * _linear_cost(*corners)))
    weight = np.concatenate((weight / weight.sum(), np.full(corners.shape[1], _PRIOR_WEIGHT)))
    rows = _terms(count, longest) / ms[:, None]
    scale = np.sqrt((weight[:, None] * rows**2).sum(0))
    scale = np.where(scale > 0, scale, 1.0)
    rows = rows / scale
    gram, target = (rows.T * weight) @ rows, rows.T @ weight
    # One linear system for each subset; a coefficient outside the subset gets an equation that holds it at 0. The
    # ridge of 1e-9 keeps systems solvable whose terms are proportional to each other.
    system = gram * _SUBSETS[:, :, None] * _SUBSETS[:, None, :]
    system[:, range(5), range(5)] += 1 - _SUBSETS + 1e-9
    found = np.linalg.solve(system, (target * _SUBSETS)[:, :, None])[:, :, 0]
    error = np.einsum("si,ij,sj->s", found, gram, found) - 2 * found @ target
    best: Floats = found[np.where((found >= 0).all(1), error, np.inf).argmin()] / scale
    return best


def _terms(count: Floats, longest: Floats) -> Floats:
    count, longest = np.broadcast_arrays(count, longest)
    return np.stack((np.ones_like(count), count, longest, count * longest, count * longest**2), axis=-1)


def _linear_cost(count: Any, longest: Any) -> Any:
    return DEFAULT_LAUNCH_TOKENS + count * longest


def _monotone(table: Floats) -> Floats:
    """Return a table that never falls along either axis: the mean of the nearest such tables above and below."""
    above = np.maximum.accumulate(np.maximum.accumulate(table, 0), 1)
    below = np.minimum.accumulate(np.minimum.accumulate(table[::-1, ::-1], 0), 1)[::-1, ::-1]
    return (above + below) / 2


def _octaves(values: Floats) -> Floats:
    return np.log2(np.maximum(values, 1))


def _knots(most: int) -> Floats:
    """Return 0, 1 and every half octave up to `most` or just above it."""
    return np.array([0.0, *np.unique(np.round(2 ** (np.arange(2 * log2(max(2, most)) + 1) / 2)))])


def _position(knots: Floats, values: NDArray[np.int64]) -> tuple[NDArray[np.intp], Floats]:
    """Return the index of the knot at or below each value, and the share of the way to the next knot, 0 to 1."""
    lower = np.searchsorted(knots[1:-1], values, "right")
    return lower, (values - knots[lower]) / (knots[lower + 1] - knots[lower])


def _levels(most: int, least: int) -> list[int]:
    """Return ascending levels, each about a quarter of the next, from `least` (`most` if smaller) up to `most`."""
    quarters = (most // 4**step for step in range(1, most.bit_length()))
    return sorted({most, min(least, most), *(level for level in quarters if level >= 2 * least)})


def _coarse_to_fine(levels: list[int]) -> list[int]:
    """Return the last level, the first, the middle one, and then the middles of the gaps, again and again."""
    order, gaps = [levels[-1], levels[0]], [levels[1:-1]]
    for gap in gaps:  # The list grows while it is read.
        if gap:
            middle = (len(gap) - 1) // 2
            order.append(gap[middle])
            gaps += [gap[:middle], gap[middle + 1 :]]
    return list(dict.fromkeys(order))
