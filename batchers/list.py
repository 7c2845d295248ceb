"""The default batcher: the model gets a list, and gives one back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .arrays import is_array
from .batcher import check_rows
from .errors import OutputMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ListBatcher:
    """Items of any type: the inputs are a new list of them, as they are.

    Outputs are a list or a tuple of one per item, or an array with one row per item. (A tuple is a sequence here, as
    items are not arrays; with the other batchers it is several outputs.)

    `unbatch` raises `OutputMismatch` for any other number or type of outputs.
    """

    def batch(self, items: Sequence[Any]) -> tuple[list[Any], int]:
        """See `Batcher.batch`."""
        return list(items), len(items)

    def unbatch(self, outputs: Any, context: int) -> list[Any]:
        """See `Batcher.unbatch`."""
        if is_array(outputs):
            check_rows(outputs, context, None)
        elif not isinstance(outputs, (list, tuple)):
            kind = type(outputs).__name__
            raise OutputMismatch(f"The model returned a {kind}: expected is a list of {context}, one output per item.")
        elif len(outputs) != context:
            raise OutputMismatch(f"The model returned {len(outputs)} outputs for {context} items, not one each.")
        return list(outputs)
