"""JSON as kombu writes it, at a fraction of kombu's cost for values of JSON's own types."""

import contextlib
from typing import Any

import msgspec
from kombu.utils import json as kombu_json

_PLAIN = {str, int, float, bool, type(None)}


def encode_json(value: Any) -> bytes:
    """Return `value` as JSON that kombu reads as it reads its own.

    Raises:
        TypeError: `value` is not serializable.
    """
    encoded = encode_plain(value)
    return bytes(kombu_json.dumps(value), "utf-8") if encoded is None else encoded


def encode_plain(value: Any) -> bytes | None:
    """Return the JSON of a value made of JSON's own types; None if it holds anything that only kombu can write."""
    if is_plain(value):
        with contextlib.suppress(ValueError, OverflowError):  # kombu writes lone surrogates and huge integers
            encoded = msgspec.json.encode(value)
            # msgspec writes null for NaN and infinities, where kombu writes their names.
            if b"null" not in encoded or not _has_odd_float(value):
                return encoded
    return None


def is_plain(value: Any) -> bool:
    """Whether `value` is made of nothing but JSON's own types, and tuples."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is list or kind is tuple:
        return set(map(type, value)) <= _PLAIN or all(map(is_plain, value))
    if kind is dict:
        return set(map(type, value)) <= {str} and all(map(is_plain, value.values()))
    return False


def as_lists(value: Any) -> Any:
    """Return `value` with its arrays, and whatever else has a `tolist`, as numbers and lists of them.

    Raises:
        TypeError: complex numbers, which JSON does not have.
    """
    if type(value) in _PLAIN:
        return value
    if hasattr(value, "tolist"):
        if "complex" in str(getattr(value, "dtype", "")):
            advice = 'return its real and imaginary parts, or set result_serializer = "batchery".'
            raise TypeError(f"JSON cannot carry a result of {value.dtype}: {advice}")
        return value.tolist()
    if isinstance(value, dict) and not set(map(type, value.values())) <= _PLAIN:
        return {key: as_lists(part) for key, part in value.items()}
    if isinstance(value, list | tuple) and not set(map(type, value)) <= _PLAIN:
        parts = [as_lists(part) for part in value]
        return tuple(parts) if type(value) is tuple else parts
    return value


def _has_odd_float(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return bool(value - value != 0)  # NaN is not, and infinity minus infinity is NaN
    if kind is list or kind is tuple:
        return any(map(_has_odd_float, value))
    return kind is dict and any(map(_has_odd_float, value.values()))
