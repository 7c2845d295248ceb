"""The few operations on arrays that the batchers share, alike for numpy arrays and torch tensors.

Torch is never imported here: tensors bring it along.
"""

import sys
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np


def is_torch(value: Any) -> bool:
    """Whether `value` is a torch tensor (of a subclass, too); does not import torch to find out."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def is_array(value: Any) -> bool:
    """Whether `value` is a numpy array or a torch tensor."""
    return isinstance(value, np.ndarray) or is_torch(value)


def as_array(value: Any, label: str) -> Any:
    """Return arrays as they are, and numbers and (nested) lists of numbers as numpy arrays.

    Raises:
        TypeError: `value` is something else; the message calls it `label`.
        ValueError: a ragged list, or an empty one, whose dtype nobody can know.
    """
    if is_array(value):
        return value
    if isinstance(value, list):
        if value and is_array(value[0]):
            raise TypeError(f"{label} is a list of arrays: stack them into one, or make several arguments a tuple.")
        try:
            array = np.asarray(value)
        except ValueError:
            raise ValueError(f"{label} is a ragged list: all its rows must be equally long.") from None
        if not array.size:
            raise ValueError(f"{label} is an empty list, which has no dtype: give an empty array instead.")
    elif isinstance(value, (int, float, complex, np.generic)):
        array = np.asarray(value)
    else:
        kind = type(value).__name__
        raise TypeError(f"{label} is a {kind}, not an array, a number or a list of numbers (nothing is nested deeper).")
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{label} holds something else than numbers (numpy makes it {array.dtype}).")
    return array


def kind_of(array: Any) -> Hashable:
    """What arrays must have in common to share memory: library, dtype and device."""
    return ("numpy", array.dtype) if isinstance(array, np.ndarray) else ("torch", array.dtype, array.device)


def outline(array: Any, axis: int | None) -> tuple[int | None, ...]:
    """Return the shape with None in place of the size along `axis` (not negative; None: the shape itself)."""
    shape = tuple(array.shape)
    return shape if axis is None or axis >= len(shape) else (*shape[:axis], None, *shape[axis + 1 :])


def concat(arrays: Sequence[Any]) -> Any:
    """Join arrays of one kind along dim 0, in new memory."""
    return sys.modules["torch"].cat(tuple(arrays)) if is_torch(arrays[0]) else np.concatenate(arrays)


def stack(arrays: Sequence[Any]) -> Any:
    """Stack arrays of one kind and shape along a new dim 0, in new memory."""
    return sys.modules["torch"].stack(tuple(arrays)) if is_torch(arrays[0]) else np.stack(arrays)


def full(shape: tuple[int, ...], value: float, like: Any) -> Any:
    """Return a new array with `value` in every cell, of the library, dtype and device of `like`."""
    if is_torch(like):
        return sys.modules["torch"].full(shape, value, dtype=like.dtype, device=like.device)
    return np.full(shape, value, like.dtype)


def check_holds(like: Any, value: float, label: str) -> None:
    """Raise a ValueError if the dtype of `like`, called `label`, cannot hold `value`; floats may round."""
    try:
        with np.errstate(all="ignore"):
            held = full((), value, like.new_empty(0, device="cpu") if is_torch(like) else like).item()
    except (OverflowError, RuntimeError, TypeError, ValueError):
        held = None
    rounded = isinstance(held, (float, complex)) and np.isfinite(held) == np.isfinite(value)
    if held != value and not rounded:
        raise ValueError(f"{label} is of {like.dtype}, which cannot hold the padding value {value!r}.")


def real_cells(lengths: Sequence[int], size: int, side: str, like: Any) -> Any:
    """Return bools of shape (len(lengths), size), True where a cell is no padding; library and device of `like`."""
    counts = np.asarray(lengths)[:, None]
    cells = np.arange(size)
    mask = cells < counts if side == "right" else cells >= size - counts
    return sys.modules["torch"].from_numpy(mask).to(like.device) if is_torch(like) else mask
