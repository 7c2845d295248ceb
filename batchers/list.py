"""The default batcher: the model gets a list and returns one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .arrays import is_array
from .batcher import split
from .errors import OutputMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ListBatcher:
    """Gives the model a new list of the items, which may be of any type.

    The outputs are a list or a tuple with one entry per item, or an array with one row per item. (A tuple is a sequence
    here, because items are not arrays. For the other batchers it is several outputs.)
    """

    def batch(self, items: Sequence[Any]) -> tuple[list[Any], int]:
        return list(items), len(items)

    def unbatch(self, outputs: Any, context: int) -> list[Any]:
        if not isinstance(outputs, (list, tuple)) and not is_array(outputs):
            kind = type(outputs).__name__
            raise OutputMismatch(f"The model returned a {kind}: expected is a list of {context}, one output per item.")
        return split(list(outputs) if isinstance(outputs, tuple) else outputs, context)
