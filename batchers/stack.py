"""Batches of items that have one shape."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from .arrays import library
from .batcher import arguments, assemble, check_shapes, class_of, gather, split


@dataclass(frozen=True, slots=True, kw_only=True)
class StackBatcher:
    """Stacks items of equal shape (...) to (items, ...). Items may be numbers: n of them have shape (n,).

    Row i of the outputs belongs to item i; a row of a one-dimensional numpy array is a numpy scalar. `batcher.py`
    describes the forms of items and outputs.
    """

    def batch(self, items: Sequence[Any]) -> tuple[Any, int]:
        form, columns = gather(items)
        for name, column in columns.items():
            check_shapes(name, column, None, "all must be equal; PadBatcher and ConcatBatcher take different ones.")
        return assemble(form, {name: library(column[0]).stack(column) for name, column in columns.items()}), len(items)

    def unbatch(self, outputs: Any, context: int) -> list[Any]:
        return split(outputs, context)

    def shape_class(self, item: Any) -> Hashable:
        """Return form, dtypes, devices and shapes."""
        return class_of(*arguments(item), {})
