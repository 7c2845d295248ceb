"""Batches of items that have several rows each."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from .arrays import library
from .batcher import arguments, assemble, check_shapes, class_of, gather, label, split


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcatBatcher:
    """Joins items of shape (rows, ...) along dim 0 to (sum of rows, ...). Each item has its own number of rows.

    All arguments of an item have the same number of rows, which may be 0. The dims after the first are the same for
    all items. Output arrays have one row per input row, and each item gets its own rows. `batcher.py` describes the
    forms of items and outputs.
    """

    def batch(self, items: Sequence[Any]) -> tuple[Any, tuple[int, ...]]:
        form, columns = gather(items)
        for name, column in columns.items():
            check_shapes(name, column, 0, "all dims but the first must be equal.")
        rows = [_rows({name: column[index] for name, column in columns.items()}, index) for index in range(len(items))]
        inputs = {name: library(column[0]).concatenate(column) for name, column in columns.items()}
        return assemble(form, inputs), tuple(rows)

    def unbatch(self, outputs: Any, context: tuple[int, ...]) -> list[Any]:
        ends = list(accumulate(context, initial=0))

        def cut(array: Any, _name: Hashable) -> list[Any]:
            return [array[start:end] for start, end in pairwise(ends)]

        return split(outputs, len(context), cut, input_rows=ends[-1])

    def length(self, item: Any) -> int:
        """Return the number of rows."""
        return _rows(arguments(item)[1])

    def crop(self, item: Any, length: int) -> Any:
        """Return the item's first `length` rows."""
        form, arrays = arguments(item)
        return assemble(form, {name: array[:length] for name, array in arrays.items()})

    def shape_class(self, item: Any) -> Hashable:
        """Return form, dtypes, devices, and all dims but the first."""
        form, arrays = arguments(item)
        return class_of(form, arrays, dict.fromkeys(arrays, 0))


def _rows(arrays: dict[Hashable, Any], index: int | None = None) -> int:
    counts = [array.shape[0] if array.ndim else None for array in arrays.values()]
    if counts[0] is not None and counts.count(counts[0]) == len(counts):
        return int(counts[0])
    item = "" if index is None else f"Item {index}: "
    if None in counts:
        name = [*arrays][counts.index(None)]
        raise ValueError(f"{item}{label(name)} is a single number, which has no rows: StackBatcher takes those.")
    raise ValueError(f"{item}the arguments {[*arrays]} have {counts} rows: all must have the same number.")
