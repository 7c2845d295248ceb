"""Arrays as raw bytes, and back: little-endian, in C order.

Torch is never imported here, because tensors bring it along. Where it is not loaded they come back as numpy arrays.
"""

import math
import sys
from typing import Any

import numpy as np

from ...batchers.arrays import is_torch

#: Dimensions of an array, at most: every version of numpy allows as many.
MAX_RANK = 32
#: Product of an empty array's other dimensions, at most, because `tolist()` makes as many lists out of no bytes at all.
MAX_EMPTY = 2**20

_SIZES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
#: How the cells of each dtype are stored.
_STORED = {name: np.dtype(name).newbyteorder("<") for name in _SIZES.split()}
#: A dtype of torch's alone. Its bits travel as whole numbers, and numpy gets them as the upper half of a float32.
_BFLOAT16 = "bfloat16"


def encode_array(array: Any) -> tuple[str, tuple[int, ...], Any]:
    """Return dtype, shape and cells of a numpy array or a torch tensor, of any byte order, strides and device.

    The cells are a flat array of bytes.

    Raises:
        TypeError: the array holds other things than numbers and bools, or is sparse, nested or masked.
        ValueError: the array has too many dimensions.
    """
    dtype, numbers = _torch_cells(array) if is_torch(array) else _numpy_cells(array)
    shape = tuple(array.shape)
    _check_shape(shape)
    return dtype, shape, np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)


def cell_bytes(dtype: Any, shape: Any, *, of_torch: bool) -> int:
    """Return the number of bytes that the cells of an array take. It is described by a payload, which may say anything.

    Raises:
        ValueError: there is no such array.
    """
    if not isinstance(dtype, str) or not (dtype in _STORED or (of_torch and dtype == _BFLOAT16)):
        raise ValueError(f"An array of the dtype {dtype!r:.50} cannot be read: {_ALLOWED}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"An array's shape is {shape!r:.50}: it must be a list of whole numbers from 0 up.")
    _check_shape(tuple(shape))
    return math.prod(shape) * _stored(dtype).itemsize


def decode_array(dtype: str, shape: list[int], cells: memoryview, *, of_torch: bool) -> Any:
    """Return a new array; `cell_bytes` has checked the arguments.

    A tensor comes back as one where torch is loaded, else as a numpy array of the same values: float32 for bfloat16.
    """
    stored = _stored(dtype)
    if dtype == "bool":  # a byte other than 0 and 1 would make a bool that equals neither
        array = np.asarray(np.ndarray(shape, np.uint8, buffer=cells) != 0)
    else:
        array = np.ndarray(shape, stored, buffer=cells).astype(stored.newbyteorder("="))
    torch: Any = sys.modules.get("torch") if of_torch else None
    # While another thread imports torch, the module is there but not complete.
    if not hasattr(torch, "from_numpy"):
        if dtype == _BFLOAT16:
            return np.asarray((array.view(np.uint16).astype(np.uint32) << 16).view(np.float32))
        return array
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == _BFLOAT16 else tensor


_ALLOWED = f"possible are {', '.join(_STORED)}, and bfloat16 of torch."


def _numpy_cells(array: Any) -> tuple[str, Any]:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("A masked array would lose its mask: send its filled() array, or data and mask.")
    stored = _STORED.get(array.dtype.name)
    if stored is None:
        raise TypeError(f"An array of {array.dtype} cannot be sent: {_ALLOWED}")
    return array.dtype.name, array.astype(stored, copy=False)


def _torch_cells(tensor: Any) -> tuple[str, Any]:
    torch = sys.modules["torch"]
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _STORED and dtype != _BFLOAT16:
        raise TypeError(f"A tensor of {tensor.dtype} cannot be sent: {_ALLOWED}")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise TypeError(f"A tensor of layout {tensor.layout} cannot be sent: call to_dense() on it, or pad it.")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    numbers = (plain.view(torch.int16) if dtype == _BFLOAT16 else plain).numpy()
    return dtype, numbers.astype(_stored(dtype), copy=False)


def _stored(dtype: str) -> "np.dtype[Any]":
    return _STORED["int16" if dtype == _BFLOAT16 else dtype]


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) > MAX_RANK:
        raise ValueError(f"An array has {len(shape)} dimensions; at most {MAX_RANK} can travel.")
    if 0 in shape and math.prod(size or 1 for size in shape) > MAX_EMPTY:
        raise ValueError(f"An empty array's shape is {shape}: its other dimensions may make {MAX_EMPTY} at most.")
