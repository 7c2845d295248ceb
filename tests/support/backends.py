"""Backends that are not exactly Celery's own."""

from __future__ import annotations

import base64
from typing import Any

from celery.backends.redis import RedisBackend
from kombu.utils.encoding import ensure_bytes

#: What sealed data begins with.
SEAL = b"SEALED"

#: What nobody may read at the server.
SECRET = "pa55word"


def seal(data: str | bytes) -> bytes:
    """Encrypt, as far as these tests need it."""
    return SEAL + base64.b64encode(ensure_bytes(data))


def unseal(data: bytes) -> bytes:
    return base64.b64decode(data.removeprefix(SEAL)) if data.startswith(SEAL) else data


class SealedBackend(RedisBackend):
    """Encrypts what it stores."""

    def encode(self, data: Any) -> Any:
        return seal(super().encode(data))

    def decode(self, payload: Any) -> Any:
        return payload and super().decode(unseal(payload))


class RenamedBackend(RedisBackend):
    """Stores under other keys."""

    def get_key_for_task(self, task_id: Any, key: Any = "") -> Any:
        return b"renamed-" + super().get_key_for_task(task_id, key)
