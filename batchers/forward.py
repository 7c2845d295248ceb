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
    """What can run a batch: a batcher and a `predict` that fits it."""

    @property
    def batcher(self) -> Batcher: ...  # noqa: D102

    def predict(self, batch: Any) -> Any:
        """Return the outputs for `batch`, the batcher's inputs."""
        ...


class Collated(NamedTuple):
    """A batch that is put together: the batcher's inputs and context, and how many items and rows it has."""

    inputs: Any
    context: Any
    size: int
    rows: int


def forward(predictor: Predictor, items: Sequence[Any], device: str, sizes: Sequence[int] = ()) -> list[Any]:
    """Run `items` as one batch and return one output per item, in order.

    Where there are `sizes` (ascending), the last item is repeated up to the next of them, and nobody gets what the
    copies' outputs are.

    Torch tensors among the inputs are moved to `device`, those among the outputs to the CPU, in one transfer an
    array. Gradients are off.

    Raises:
        OutputMismatch: the model returned another number of outputs than there are items.
    """
    return run(predictor, collate(predictor, items, sizes), device)


def collate(predictor: Predictor, items: Sequence[Any], sizes: Sequence[int] = ()) -> Collated:
    """Put `items` together, which is the half of `forward` that does not need the device."""
    count = len(items)
    if missing := next((size - count for size in sizes if size >= count), 0):
        items = [*items, *repeat(items[-1], missing)]
    return Collated(*predictor.batcher.batch(items), count, len(items))


def run(predictor: Predictor, batch: Collated, device: str) -> list[Any]:
    """Run what `collate` returned: the other half of `forward`."""
    with _without_gradients():
        outputs = predictor.predict(move(batch.inputs, lambda tensor: _to(tensor, device)))
    answers = predictor.batcher.unbatch(move(outputs, lambda tensor: _to(tensor, "cpu")), batch.context)
    if len(answers) != batch.rows:
        raise OutputMismatch(f"unbatch() returned {len(answers)} outputs for {batch.rows} items: one each is expected.")
    return answers[: batch.size] if batch.size < batch.rows else answers


def move(arrays: Any, tensor_to: Callable[[Any], Any]) -> Any:
    """Return `arrays` (one, or tuples and mappings of them) with each torch tensor replaced by `tensor_to(tensor)`."""
    if is_torch(arrays):
        return tensor_to(arrays)
    # What holds nothing that moves stays what it is: a batcher may make inputs of its own types.
    if isinstance(arrays, Mapping):
        moved = {name: move(array, tensor_to) for name, array in arrays.items()}
        return moved if any(moved[name] is not array for name, array in arrays.items()) else arrays
    if isinstance(arrays, tuple):
        parts = [move(array, tensor_to) for array in arrays]
        if all(part is array for part, array in zip(parts, arrays, strict=True)):
            return arrays
        return arrays._make(parts) if hasattr(arrays, "_make") else tuple(parts)
    return arrays


def _to(tensor: Any, device: str) -> Any:
    return tensor if device == "cpu" and tensor.device.type == "cpu" else tensor.to(device)


def _without_gradients() -> contextlib.AbstractContextManager[Any]:
    # Only a model that uses torch has imported it by now.
    inference_mode = getattr(sys.modules.get("torch"), "inference_mode", contextlib.nullcontext)
    return inference_mode()
