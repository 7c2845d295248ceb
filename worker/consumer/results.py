"""Results as Celery stores them, in JSON or by the serializer of ours, without Celery's own cost."""

from typing import Any

import msgspec

from ...producer import serializer
from ...producer.encoding import encode_json

#: Serializers that `encode_success` writes for.
SERIALIZERS = ("json", serializer.NAME)

_encode = msgspec.json.encode


def encode_success(
    task_id: str, value: Any, done_at: str, group: str | None, parent: str | None, serialized_by: str = "json"
) -> bytes:
    """Return what Celery's backends store for a success; equal to theirs once decoded.

    `done_at` is an ISO 8601 time, `serialized_by` one of `SERIALIZERS`.

    Raises:
        TypeError: `value` is not serializable.
    """
    text, raw = serializer.encode(value) if serialized_by == serializer.NAME else (encode_json(value), ())
    parts = [
        b'{"status": "SUCCESS", "result": ',
        text,
        b', "traceback": null, "children": [], "date_done": "',
        done_at.encode(),
    ]
    if group:
        parts += (b'", "group_id": ', _encode(group), b', "task_id": ')
    else:
        parts.append(b'", "task_id": ')
    parts.append(_encode(task_id))
    if parent:
        parts += (b', "parent_id": ', _encode(parent))
    parts.append(b"}")
    return serializer.join(b"".join(parts), raw)
