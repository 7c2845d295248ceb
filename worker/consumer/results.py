"""Results in Celery's own JSON, without Celery's own cost."""

from typing import Any

import msgspec

from ...producer.encoding import encode_json

_encode = msgspec.json.encode


def encode_success(task_id: str, value: Any, done_at: str, group: str | None, parent: str | None) -> bytes:
    """Return what Celery's JSON backends store for a success; equal to theirs once decoded.

    `done_at` is an ISO 8601 time.

    Raises:
        TypeError: `value` is not serializable.
    """
    parts = [
        b'{"status": "SUCCESS", "result": ',
        encode_json(value),
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
    return b"".join(parts)
