"""Warm-up: run a model's examples in batches before it takes work, and measure what batches of them cost."""

import logging
from collections.abc import Callable
from typing import Any

from ...batchers import BatchFailed, CostModel, TokenCeiling
from ...batchers.forward import forward
from ...batchers.isolation import is_out_of_memory
from .model import Model
from .runner import free_memory

logger = logging.getLogger(__name__)

#: Measurements after which a shape that is predicted to take longer than there is time is left out.
_ENOUGH_TO_PREDICT = 4


def warm_up(
    model: Model,
    device: str,
    cost: CostModel,
    ceiling: TokenCeiling,
    *,
    seconds: float,
    clock: Callable[[], float],
) -> int:
    """Run batches of `model`'s examples for about `seconds`; return how many were measured.

    Memory is then allocated, kernels are chosen, and `cost` knows the grid of shapes that it asks for, as far as there
    was time: each shape twice, since a first run is slower. A GPU begins with the largest, so that memory is allocated
    once; elsewhere, where that alone may take longer than there is time, the smallest come first. What does not fit
    into memory lowers `ceiling`.

    Raises:
        BatchFailed: an example cannot be run. A worker that cannot run those must not consume.
    """
    examples = _prepared(model)
    if not examples or seconds <= 0:
        return 0
    until = clock() + seconds
    shapes = _shapes(model, examples, cost)
    order = [*shapes.items()] if device.startswith("cuda") else sorted(shapes.items(), key=_size_of_shape)
    measured = 0
    for (count, length), item in order * 2:
        left_s = until - clock()
        if left_s <= 0:
            break
        if measured >= _ENOUGH_TO_PREDICT and float(cost(count, length)) > 1000 * left_s:
            continue
        began = clock()
        if _ran(model, [item] * count, device, ceiling, length):
            cost.observe(count, length, 1000 * (clock() - began))
            measured += 1
    logger.info("Task %s is warm: %d batches were measured (%.1f s).", model.name, measured, clock() + seconds - until)
    return measured


def _shapes(model: Model, examples: dict[int, Any], cost: CostModel) -> dict[tuple[int, int], Any]:
    """Return an item for each shape (count, length) that is worth measuring."""
    shapes = {}
    for count, length in cost.grid(max(examples) or None):
        item = _of_length(model, examples, length)
        shapes[count, model.item_length(item) or 0] = item
    return shapes


def _size_of_shape(shape: tuple[tuple[int, int], Any]) -> int:
    (count, length), _ = shape
    return count * max(1, length)


def _prepared(model: Model) -> dict[int, Any]:
    """Return the examples' items by length, 0 where nothing counts one."""
    items = {}
    for number, item in enumerate(model.prepare_examples()):
        if isinstance(item, BaseException):
            raise BatchFailed(f"Task {model.name}: examples[{number}] cannot be preprocessed: {item!r}") from item
        items[model.item_length(item) or 0] = item
    return items


def _of_length(model: Model, examples: dict[int, Any], length: int) -> Any:
    """Return an item of a length: the longest example cropped, or else the example nearest to it."""
    crop = getattr(model.batcher, "crop", None)
    longest = max(examples)
    if crop is not None and model.counts_as_batcher and length < longest:
        return crop(examples[longest], length)
    return examples[min(examples, key=lambda known: abs(known - length))]


def _ran(model: Model, items: list[Any], device: str, ceiling: TokenCeiling, length: int) -> bool:
    try:
        forward(model, items, device)
        return True
    except Exception as exc:
        if not is_out_of_memory(exc) or len(items) == 1:
            what = f"a batch of {len(items)} examples of length {length}" if length else f"{len(items)} examples"
            raise BatchFailed(f"Task {model.name}: {what} cannot be run: {exc!r}") from exc
    ceiling.failed(len(items) * max(1, length), len(items))
    free_memory()
    return False
