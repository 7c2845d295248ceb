"""Results in Celery's own JSON, without Celery's own cost."""

from typing import Any

import msgspec
from kombu.utils import json as kombu_json

_PLAIN = {str, int, float, bool, type(None)}
_encode = msgspec.json.encode


def encode_success(task_id: str, value: Any, done_at: str, group: str | None, parent: str | None) -> bytes:
    """Return what Celery's JSON backends store for a success; equal to theirs once decoded.

    Raises:
        TypeError: `value` is not serializable.
    """
    tail = b'", "task_id": ' + _encode(task_id) + b"}"
    if group:
        tail = b'", "group_id": ' + _encode(group) + b", " + tail[3:]
    if parent:
        tail = b'", "parent_id": ' + _encode(parent) + b", " + tail[3:]
    return b"".join(
        (
            b'{"status": "SUCCESS", "result": ',
            encode_value(value),
            b', "traceback": null, "children": [], "date_done": "',
            done_at.encode(),
            tail,
        )
    )


def encode_value(value: Any) -> bytes:
    """Return `value` as JSON, as kombu would write it; msgspec writes what both write alike."""
    if _is_plain(value):
        encoded = _encode(value)
        # msgspec writes null for NaN and infinities, where kombu writes their names.
        if b"null" not in encoded or not _has_odd_float(value):
            return encoded
    return kombu_json.dumps(value).encode()


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is list:
        kinds = set(map(type, value))
        return kinds <= _PLAIN or all(map(_is_plain, value))
    if kind is dict:
        return set(map(type, value)) <= {str} and all(map(_is_plain, value.values()))
    return False


def _has_odd_float(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return value - value != 0  # NaN, and infinity minus infinity, are not 0
    if kind is list:
        return any(map(_has_odd_float, value))
    return kind is dict and any(map(_has_odd_float, value.values()))
