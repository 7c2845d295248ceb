"""One batch through a model: batch, predict, unbatch."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, Protocol

from .arrays import is_torch
from .batcher import Batcher
from .errors import OutputMismatch


class Predictor(Protocol):
    """A batcher, and a `predict` that fits it."""

    @property
    def batcher(self) -> Batcher: ...

    def predict(self, batch: Any) -> Any:
        """Return the outputs for `batch`, which is the inputs that the batcher made."""


class Collated(NamedTuple):
    """The batcher's inputs and context for one batch, and the batch's number of items and rows."""

    inputs: Any
    context: Any
    size: int
    rows: int


def forward(predictor: Predictor, items: Sequence[Any], device: str, sizes: Sequence[int] = ()) -> list[Any]:
    """Run `items` as one batch and return one output per item, in order.

    If there are `sizes` (ascending), the last item is repeated up to the next of them, and the outputs of the copies
    are dropped. Torch tensors among the inputs are moved to `device` and those among the outputs to the CPU, in one
    transfer per array. Gradients are off.

    Raises:
        OutputMismatch: the number of outputs differs from the number of items.
    """
    return run(predictor, collate(predictor, items, sizes), device)


def collate(predictor: Predictor, items: Sequence[Any], sizes: Sequence[int] = ()) -> Collated:
    """Do the first half of `forward`, which does not need the device."""
    count = len(items)
    if missing := next((size - count for size in sizes if size >= count), 0):
        items = [*items, *repeat(items[-1], missing)]
    return Collated(*predictor.batcher.batch(items), count, len(items))


def run(predictor: Predictor, batch: Collated, device: str) -> list[Any]:
    """Do the second half of `forward`."""
    # A model that uses torch has imported it by now.
    with getattr(sys.modules.get("torch"), "inference_mode", contextlib.nullcontext)():
        outputs = predictor.predict(move(batch.inputs, lambda tensor: tensor.to(device)))
    answers = predictor.batcher.unbatch(move(outputs, lambda tensor: tensor.to("cpu")), batch.context)
    if len(answers) != batch.rows:
        raise OutputMismatch(f"unbatch() returned {len(answers)} outputs for {batch.rows} items: one each is expected.")
    return answers[: batch.size] if batch.size < batch.rows else answers


def move(arrays: Any, tensor_to: Callable[[Any], Any]) -> Any:
    """Return `arrays` (one, or tuples and mappings of them) with each torch tensor replaced by `tensor_to(tensor)`.

    A tuple or mapping in which no tensor moves is returned itself, because a batcher may have types of its own.
    """
    if is_torch(arrays):
        return tensor_to(arrays)
    if isinstance(arrays, Mapping):
        moved = {name: move(array, tensor_to) for name, array in arrays.items()}
        return moved if any(moved[name] is not array for name, array in arrays.items()) else arrays
    if isinstance(arrays, tuple):
        parts = [move(array, tensor_to) for array in arrays]
        if all(part is array for part, array in zip(parts, arrays, strict=True)):
            return arrays
        return arrays._make(parts) if hasattr(arrays, "_make") else tuple(parts)
    return arrays
