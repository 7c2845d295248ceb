"""Results as Celery stores them, in JSON or by the serializer of ours, without Celery's own cost."""

from collections.abc import Sequence
from typing import Any

import msgspec

from ....producer.codec import serializer

#: Serializers that `encode_success` writes for.
SERIALIZERS = ("json", serializer.NAME)

_encode = msgspec.json.encode


#: A value's JSON, and the raw bytes that go behind it.
Encoded = tuple[bytes, Sequence[Any]]


def encode_value(value: Any, serialized_by: str = "json") -> Encoded:
    """Encode a value by one of `SERIALIZERS`.

    Raises:
        TypeError: `value` is not serializable.
    """
    return serializer.encode_by(serialized_by, value)


def encode_success(task_id: str, value: Encoded, done_at: str, group: str | None, parent: str | None) -> bytes:
    """Return what Celery's backends store for a success, of an ISO 8601 time; equal to theirs once decoded."""
    text, raw = value
    done = b'{"status": "SUCCESS", "result": %b, "traceback": null, "children": [], "date_done": "%b", ' % (
        text,
        done_at.encode(),
    )
    in_group = b'"group_id": %b, ' % _encode(group) if group else b""
    of_parent = b', "parent_id": %b' % _encode(parent) if parent else b""
    return serializer.join(b'%b%b"task_id": %b%b}' % (done, in_group, _encode(task_id), of_parent), raw)


def encode_part(task_id: str, value: Encoded) -> bytes:
    """Return what Celery's Redis backend keeps of a success for the callback of its chord; equal once decoded."""
    text, raw = value
    return serializer.join(b'[1, %b, "SUCCESS", %b]' % (_encode(task_id), text), raw)
