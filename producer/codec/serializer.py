"""The serializer `batchery`: JSON exactly as kombu's, with the bytes of arrays behind it.

    <JSON> NUL <bytes of the first array> <bytes of the second> ...

JSON has no NUL byte, so it ends at the first one. A payload without arrays and bytes is JSON and nothing else. Within
the JSON, these stand for the bytes behind it, in order:

    {"__type__": "batchery.array", "__value__": [dtype, shape]}    a numpy array
    {"__type__": "batchery.tensor", "__value__": [dtype, shape]}   a torch tensor
    {"__type__": "batchery.bytes", "__value__": size}              bytes

A payload cannot ask for more memory than it brings along, because each size is checked against the bytes that are left
before anything is made of them, no byte is used twice, and none may be left over. Nothing is unpickled.
"""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from kombu import serialization
from kombu.utils import json as kombu_json

from ...batchers.arrays import is_array, is_torch
from .arrays import cell_bytes, decode_array, encode_array
from .json import encode_json, encode_plain, is_plain

#: The serializer's name, for `task_serializer`, `result_serializer` and a task's `serializer`.
NAME = "batchery"
CONTENT_TYPE = "application/x-batchery"

#: Marks values that JSON does not have: `kombu.utils.json` writes it for its own types, and we for arrays and bytes.
TYPE_MARK = b"__type__"
_END_OF_JSON = b"\0"
_ARRAY, _TENSOR, _BYTES = "batchery.array", "batchery.tensor", "batchery.bytes"
_TAGGED = {"__type__", "__value__"}
_NESTS = {list, dict}


def dumps(value: Any) -> bytes:
    """Return the payload for `value`.

    Raises:
        TypeError: something in `value` cannot be sent.
        ValueError: an array with too many dimensions, or a value that contains itself.
    """
    return join(*encode_by(NAME, value))


def loads(payload: "bytes | bytearray | memoryview | str") -> Any:
    """Return the value of a payload; its arrays own their memory and can be written to.

    Raises:
        ValueError: this is no such payload, or parts of it are missing.
        Exception: whatever the constructors of kombu's own types raise; also RecursionError.
    """
    data = payload.encode() if isinstance(payload, str) else bytes(payload)
    end = data.find(_END_OF_JSON)
    text = data if end < 0 else data[:end]
    try:
        value = msgspec.json.decode(text)
    except msgspec.MsgspecError:  # Python's JSON alone reads NaN and lone surrogates
        value = json.loads(text.decode())
    if end < 0 and TYPE_MARK not in text:
        return value
    reader = _PayloadReader(memoryview(data)[len(text) + 1 :])
    value = reader.fill_in(value)
    if reader.data:
        raise ValueError(f"The payload has {len(reader.data)} bytes that belong to none of its arrays.")
    return value


def encode_by(name: str, value: Any) -> tuple[bytes, Sequence[Any]]:
    """Return a value's JSON, and the raw bytes that go behind it; raises as `dumps`.

    They are written by the serializer of that name, this one or "json", which has no raw bytes.
    """
    if name != NAME:
        return encode_json(value), ()
    plain = encode_plain(value)
    if plain is not None:
        return plain, ()
    encoder = _Encoder()
    return encoder.encode(value).encode(), encoder.raw


def join(text: bytes, raw: Sequence[Any]) -> bytes:
    """Return the payload of some JSON and of the raw bytes that go behind it."""
    return b"".join((text, _END_OF_JSON, *raw)) if raw else text


class _Encoder(kombu_json.JSONEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.raw: list[Any] = []

    def default(self, value: Any) -> Any:
        if is_array(value):
            dtype, shape, cells = encode_array(value)
            return self._behind(cells, _TENSOR if is_torch(value) else _ARRAY, [dtype, shape])
        if isinstance(value, np.bool_ | np.number) and not isinstance(value, np.longdouble | np.clongdouble):
            return value.item()
        if isinstance(value, bytes | bytearray | memoryview):
            data = bytes(value)
            return self._behind(data, _BYTES, len(data))
        return super().default(value)

    def _behind(self, raw: Any, kind: str, value: Any) -> dict[str, Any]:
        """Put raw bytes behind the JSON; return what stands for them within it."""
        self.raw.append(raw)
        return {"__type__": kind, "__value__": value}


class _PayloadReader:
    """Reads the bytes behind the JSON part by part, as the JSON is read from left to right."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def fill_in(self, value: Any) -> Any:
        """Return `value` with each tagged dict in it, of ours or kombu's, replaced by what it stands for."""
        if type(value) is list:
            return [self.fill_in(part) if type(part) in _NESTS else part for part in value]
        if type(value) is not dict:
            return value
        for key, part in value.items():
            if type(part) in _NESTS:
                value[key] = self.fill_in(part)
        return self._untagged(value) if value.keys() == _TAGGED else value

    def _untagged(self, tagged: dict[str, Any]) -> Any:
        kind, value = tagged["__type__"], tagged["__value__"]
        if kind == _BYTES:
            return bytes(self._take(value))
        if kind not in (_ARRAY, _TENSOR):
            return kombu_json.object_hook(tagged)
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"An array is described by {value!r:.50}: it must be dtype and shape.")
        dtype, shape = value
        cells = self._take(cell_bytes(dtype, shape, of_torch=kind == _TENSOR))
        return decode_array(dtype, shape, cells, of_torch=kind == _TENSOR)

    def _take(self, size: Any) -> memoryview:
        if type(size) is not int or not 0 <= size <= len(self.data):
            raise ValueError(f"The payload ends early: {size!r:.50} bytes are to follow, {len(self.data)} are there.")
        part, self.data = self.data[:size], self.data[size:]
        return part


def summarise(value: Any) -> Any:
    """Return `value` for logs and monitors: with each array replaced by its dtype and shape.

    The `repr` of an array takes milliseconds, even if little of it is kept.
    """
    if is_plain(value):
        return value
    if is_array(value):
        return _Summary(value)
    if type(value) is list or type(value) is tuple:
        return type(value)(map(summarise, value))
    return {key: summarise(part) for key, part in value.items()} if type(value) is dict else value


class _Summary:
    def __init__(self, array: Any) -> None:
        self._array = array

    def __repr__(self) -> str:
        return f"<{str(self._array.dtype).removeprefix('torch.')} array of shape {tuple(self._array.shape)}>"


serialization.register(NAME, dumps, loads, CONTENT_TYPE, "binary")
