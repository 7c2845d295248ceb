"""Batches of items that have one shape."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from .arrays import stack
from .batcher import arguments, assemble, check_rows, check_shapes, class_of, gather, split


@dataclass(frozen=True, slots=True, kw_only=True)
class StackBatcher:
    """Items of equal shape: (...) each, stacked to (items, ...). Numbers are allowed: n of them make shape (n,).

    Row i of the outputs belongs to item i; a row of a one-dimensional numpy array is a numpy scalar. See `batcher.py`
    for the forms of items and outputs.

    `batch` raises `TypeError` or `ValueError` for items that do not go together, `unbatch` `OutputMismatch` for any
    other number of rows, or of entries in a list of outputs.
    """

    def batch(self, items: Sequence[Any]) -> tuple[Any, int]:
        """See `Batcher.batch`; the context is the number of items."""
        form, columns = gather(items)
        for name, column in columns.items():
            check_shapes(name, column, None, "all must be equal; PadBatcher and ConcatBatcher take different ones.")
        return assemble(form, {name: stack(column) for name, column in columns.items()}), len(items)

    def unbatch(self, outputs: Any, context: int) -> list[Any]:
        """See `Batcher.unbatch`."""

        def rows(array: Any, name: Hashable) -> list[Any]:
            check_rows(array, context, name)
            return list(array)

        return split(outputs, context, rows)

    def shape_class(self, item: Any) -> Hashable:
        """Return form, dtypes, devices and shapes."""
        return class_of(*arguments(item), {})
