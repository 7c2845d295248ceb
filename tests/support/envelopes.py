"""Messages as kombu writes them into Redis, with any part of them changed."""

from __future__ import annotations

import base64
import json
from typing import Any


def message(body: bytes | str = b"[[1], {}, {}]", /, *, without: str = "", **changes: Any) -> bytes:
    """A call of `echo` as kombu writes it, with `changes` to its headers, its properties, or what holds these."""
    headers = {"task": "echo", "id": "{id}", "lang": "py"}
    properties = {
        "body_encoding": "base64",
        "correlation_id": "{id}",
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "delivery_mode": 2,
        "delivery_tag": "{id}",
        "priority": 0,
    }
    envelope = {
        "body": body if isinstance(body, str) else base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    for name, value in changes.items():
        name = name.replace("_", "-") if name.startswith("content") else name
        (envelope if name in envelope else properties if name in properties else headers)[name] = value
    for part in (headers, properties, envelope):
        part.pop(without, None)
    return json.dumps(envelope).encode()
