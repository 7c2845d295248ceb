"""One batch through a model: batch, predict, unbatch."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, Protocol

from .arrays import is_torch
from .batcher import Batcher
from .errors import OutputMismatch


class Predictor(Protocol):
    """What can run a batch: a batcher and a `predict` that fits it."""

    @property
    def batcher(self) -> Batcher: ...  # noqa: D102

    def predict(self, batch: Any) -> Any:
        """Return the outputs for `batch`, the batcher's inputs."""
        ...


def forward(predictor: Predictor, items: Sequence[Any], device: str, sizes: Sequence[int] = ()) -> list[Any]:
    """Run `items` as one batch and return one output per item, in order.

    Where there are `sizes` (ascending), the last item is repeated up to the next of them, and nobody gets what the
    copies' outputs are.

    Torch tensors among the inputs are moved to `device`, those among the outputs to the CPU, in one transfer an
    array. Gradients are off.

    Raises:
        OutputMismatch: the model returned another number of outputs than there are items.
    """
    count = len(items)
    if missing := next((size - count for size in sizes if size >= count), 0):
        items = [*items, *repeat(items[-1], missing)]
    inputs, context = predictor.batcher.batch(items)
    with _without_gradients():
        outputs = predictor.predict(_move(inputs, device))
    answers = predictor.batcher.unbatch(_move(outputs, "cpu"), context)
    if len(answers) != len(items):
        raise OutputMismatch(f"unbatch() returned {len(answers)} outputs for {len(items)} items: one each is expected.")
    return answers[:count] if missing else answers


def _without_gradients() -> contextlib.AbstractContextManager[Any]:
    # Only a model that uses torch has imported it by now.
    inference_mode = getattr(sys.modules.get("torch"), "inference_mode", contextlib.nullcontext)
    return inference_mode()


def _move(arrays: Any, device: str) -> Any:
    if is_torch(arrays):
        return arrays if device == "cpu" and arrays.device.type == "cpu" else arrays.to(device)
    # What holds nothing that moves stays what it is: a batcher may make inputs of its own types.
    if isinstance(arrays, Mapping):
        moved = {name: _move(array, device) for name, array in arrays.items()}
        return moved if any(moved[name] is not array for name, array in arrays.items()) else arrays
    if isinstance(arrays, tuple):
        parts = [_move(array, device) for array in arrays]
        if all(part is array for part, array in zip(parts, arrays, strict=True)):
            return arrays
        return arrays._make(parts) if hasattr(arrays, "_make") else tuple(parts)
    return arrays
