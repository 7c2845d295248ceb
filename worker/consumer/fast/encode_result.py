"""Encodes results as Celery stores them, in JSON or by Batchery's serializer, without Celery's own cost."""

from collections.abc import Sequence
from typing import Any

import msgspec

from ....producer.codec import serializer

#: Serializers that results can be encoded by.
SERIALIZERS = ("json", serializer.NAME)

#: A value's JSON, and the raw bytes that go behind it: what `encode_by` of the serializer returns.
EncodedValue = tuple[bytes, Sequence[Any]]

_encode = msgspec.json.encode


def encode_success(task_id: str, value: EncodedValue, done_at: str, group: str | None, parent: str | None) -> bytes:
    """Return what Celery's backends store for a success at an ISO 8601 time; it is equal to theirs once decoded."""
    text, raw = value
    done = b'{"status": "SUCCESS", "result": %b, "traceback": null, "children": [], "date_done": "%b", ' % (
        text,
        done_at.encode(),
    )
    in_group = b'"group_id": %b, ' % _encode(group) if group else b""
    of_parent = b', "parent_id": %b' % _encode(parent) if parent else b""
    return serializer.join(b'%b%b"task_id": %b%b}' % (done, in_group, _encode(task_id), of_parent), raw)


def encode_part(task_id: str, value: EncodedValue) -> bytes:
    """Return what Celery's Redis backend keeps of a success for its chord's callback; it is equal once decoded."""
    text, raw = value
    return serializer.join(b'[1, %b, "SUCCESS", %b]' % (_encode(task_id), text), raw)
