"""The operations on arrays that the batchers share, for numpy arrays and torch tensors alike.

Torch is never imported here, because it is already imported wherever there are tensors.
"""

import sys
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np


def is_torch(value: Any) -> bool:
    """Tell whether `value` is a torch tensor, of a subclass too, without importing torch."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def is_array(value: Any) -> bool:
    """Tell whether `value` is a numpy array or a torch tensor."""
    return isinstance(value, np.ndarray) or is_torch(value)


def library(array: Any) -> Any:
    """Return the module that `array` is from, numpy or torch."""
    return sys.modules["torch"] if is_torch(array) else np


def as_array(value: Any, label: str) -> Any:
    """Return arrays unchanged, and numbers and (nested) lists of numbers as numpy arrays.

    Raises:
        TypeError: `value`, which the message calls `label`, is something else.
        ValueError: the list is ragged, or it is empty and so has no dtype.
    """
    if is_array(value):
        return value
    if isinstance(value, list) and value and is_array(value[0]):
        raise TypeError(f"{label} is a list of arrays: stack them into one, or make several arguments a tuple.")
    if not isinstance(value, (list, int, float, complex, np.generic)):
        raise TypeError(f"{label} is a {type(value).__name__}: give an array, a number, or a list of numbers or lists.")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{label} is a ragged list: all its rows must be equally long.") from None
    if not array.size:
        raise ValueError(f"{label} is an empty list, which has no dtype: give an empty array instead.")
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{label} must hold numbers only (numpy converts it to {array.dtype}).")
    return array


def kind_of(array: Any) -> Hashable:
    """Return what arrays must have in common to share memory: library, dtype and device."""
    return ("numpy", array.dtype) if isinstance(array, np.ndarray) else ("torch", array.dtype, array.device)


def outline(array: Any, axis: int | None) -> tuple[int | None, ...]:
    """Return the shape with None for the size along `axis`, which must not be negative; None: the shape itself."""
    shape = tuple(array.shape)
    return shape if axis is None or axis >= len(shape) else (*shape[:axis], None, *shape[axis + 1 :])


def full(shape: tuple[int, ...], value: float, like: Any) -> Any:
    """Return a new array filled with `value`, with the library, dtype and device of `like`."""
    return like.new_full(shape, value) if is_torch(like) else np.full(shape, value, like.dtype)


def check_holds(like: Any, value: float, label: str) -> None:
    """Raise a ValueError if the dtype of `like`, called `label`, cannot hold `value`; floats may round it."""
    try:
        with np.errstate(all="ignore"):
            held = full((), value, like.new_empty(0, device="cpu") if is_torch(like) else like).item()
    except (OverflowError, RuntimeError, TypeError, ValueError):
        held = None
    rounded = isinstance(held, (float, complex)) and np.isfinite(held) == np.isfinite(value)
    if held != value and not rounded:
        raise ValueError(f"{label} is of {like.dtype}, which cannot hold the padding value {value!r}.")


def real_cells(lengths: Sequence[int], size: int, side: str, like: Any) -> Any:
    """Return bools of shape (items, size), True for cells that are not padding, of the library and device of `like`."""
    counts = np.asarray(lengths)[:, None]
    cells = np.arange(size)
    mask = cells < counts if side == "right" else cells >= size - counts
    return library(like).from_numpy(mask).to(like.device) if is_torch(like) else mask
