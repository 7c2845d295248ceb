"""Batches of a few fixed lengths, for models that are compiled or tuned for each shape."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .pad import PadBatcher, Padded, ascending, edge


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketBatcher:
    """Items that share a batch only with those of their bucket, padded to the bucket's edge by a `PadBatcher`.

    An item is in the first bucket that its length does not exceed. Longer ones share one more, open bucket, and are
    padded to the longest of their batch. Every padded argument goes to an edge; the first decides on the bucket.

    `batch` raises `ValueError` for items of several buckets; all else is as with `PadBatcher`.
    """

    #: The buckets' edges: lengths, ascending.
    buckets: Sequence[int] = (16, 32, 64)
    #: How to pad, but for `pad_to`, which the buckets decide.
    batcher: PadBatcher = field(default_factory=PadBatcher)

    def __post_init__(self) -> None:
        """Check the options."""
        edges = ascending("buckets", self.buckets)
        if self.batcher.pad_to not in (None, edges):
            raise ValueError(f"pad_to={self.batcher.pad_to!r}: leave it out, the buckets decide.")
        object.__setattr__(self, "buckets", edges)
        object.__setattr__(self, "batcher", replace(self.batcher, pad_to=edges))

    def batch(self, items: Sequence[Any]) -> tuple[Any, Padded]:
        """See `Batcher.batch`."""
        inputs, context = self.batcher.batch(items)
        lengths = context.first.lengths
        for index, length in enumerate(lengths):
            if edge(self.buckets, length) != edge(self.buckets, lengths[0]):
                both = f"Item {index} is {length} long, item 0 {lengths[0]}"
                raise ValueError(f"{both}: not of one bucket of {self.buckets}. Keep them apart with shape_class().")
        return inputs, context

    def unbatch(self, outputs: Any, context: Padded) -> list[Any]:
        """See `Batcher.unbatch`."""
        return self.batcher.unbatch(outputs, context)

    def length(self, item: Any) -> int:
        """Return the size along the axis of the first argument padded."""
        return self.batcher.length(item)

    def crop(self, item: Any, length: int) -> Any:
        """See `PadBatcher.crop`."""
        return self.batcher.crop(item, length)

    def shape_class(self, item: Any) -> Hashable:
        """Return the bucket's edge (None: the open one), form, dtypes, devices, and all dims that are not padded."""
        return edge(self.buckets, self.length(item)), self.batcher.shape_class(item)
