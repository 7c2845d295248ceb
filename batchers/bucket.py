"""Batches of a few fixed lengths, for models that are compiled or tuned for each shape."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .batcher import first_odd
from .pad import PadBatcher, Spans, ascending, edge


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketBatcher:
    """Batches only items of one bucket, and pads them to the bucket's edge with a `PadBatcher`.

    An item belongs to the first bucket whose edge is not below its length. Items longer than all edges share one open
    bucket, and are padded to the longest of their batch. Every padded argument is padded to an edge; the first one
    decides the item's bucket.

    `batch` raises `ValueError` for items of several buckets. Otherwise the batcher behaves like its `PadBatcher`.
    """

    #: The buckets' edges: ascending lengths.
    buckets: Sequence[int] = (16, 32, 64)
    #: How to pad, except for `pad_to`, which the buckets decide.
    batcher: PadBatcher = field(default_factory=PadBatcher)

    def __post_init__(self) -> None:
        edges = ascending("buckets", self.buckets)
        if self.batcher.pad_to not in (None, edges):
            raise ValueError(f"pad_to={self.batcher.pad_to!r}: leave it out, the buckets decide.")
        object.__setattr__(self, "buckets", edges)
        object.__setattr__(self, "batcher", replace(self.batcher, pad_to=edges))

    def batch(self, items: Sequence[Any]) -> tuple[Any, Spans]:
        inputs, context = self.batcher.batch(items)
        lengths = next(iter(context.values())).lengths
        if odd := first_odd([edge(self.buckets, length) for length in lengths]):
            sizes = f"Item {odd} is {lengths[odd]} long, item 0 {lengths[0]}"
            raise ValueError(f"{sizes}: not of one bucket of {self.buckets}. Keep them apart with shape_class().")
        return inputs, context

    def unbatch(self, outputs: Any, context: Spans) -> list[Any]:
        return self.batcher.unbatch(outputs, context)

    def length(self, item: Any) -> int:
        return self.batcher.length(item)

    def crop(self, item: Any, length: int) -> Any:
        return self.batcher.crop(item, length)

    def shape_class(self, item: Any) -> Hashable:
        """Return the bucket's edge (None: the open bucket), form, dtypes, devices, and all dims that are not padded."""
        return edge(self.buckets, self.length(item)), self.batcher.shape_class(item)
