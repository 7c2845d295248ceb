"""One batch through a model: batch, predict, unbatch."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
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
    """A batch that is put together: the batcher's inputs and context, and the number of items."""

    inputs: Any
    context: Any
    size: int


def forward(predictor: Predictor, items: Sequence[Any], device: str) -> list[Any]:
    """Run `items` as one batch and return one output per item, in order.

    Torch tensors among the inputs are moved to `device`, those among the outputs to the CPU, in one transfer an
    array. Gradients are off.

    Raises:
        OutputMismatch: the model returned another number of outputs than there are items.
    """
    return run(predictor, collate(predictor, items), device)


def collate(predictor: Predictor, items: Sequence[Any]) -> Collated:
    """Put `items` together, which is the half of `forward` that does not need the device."""
    return Collated(*predictor.batcher.batch(items), len(items))


def run(predictor: Predictor, batch: Collated, device: str) -> list[Any]:
    """Run what `collate` returned: the other half of `forward`."""
    with _without_gradients():
        outputs = predictor.predict(move(batch.inputs, lambda tensor: _to(tensor, device)))
    answers = predictor.batcher.unbatch(move(outputs, lambda tensor: _to(tensor, "cpu")), batch.context)
    if len(answers) != batch.size:
        raise OutputMismatch(f"unbatch() returned {len(answers)} outputs for {batch.size} items: one each is expected.")
    return answers


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
