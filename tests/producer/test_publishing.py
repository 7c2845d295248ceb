"""What is published in bulk is what single calls would publish."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import redis
from batchery.producer.serializer import loads
from batchery.worker.consumer.message import decode
from celery import Celery
from kombu.utils import json as kombu_json

from batchery import BatchTask
from tests.consumer.messages import ACCEPT

VECTOR = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("serializer", "items", "shown"),
    [
        ("batchery", [VECTOR, {"ids": VECTOR, "raw": b"\0"}], "(<float32 array of shape (4,)>,)"),
        ("json", [[1.5, None], {"a": "ü"}], "([1.5, None],)"),
    ],
)
def test_many_calls_publish_the_messages_that_single_calls_would(
    redis_url: str, redis_client: redis.Redis, serializer: str, items: list[Any], shown: str
) -> None:
    with Celery(broker=redis_url, set_as_current=False) as app:

        @app.task(base=BatchTask, name="echo", serializer=serializer, ignore_result=True, shared=False)
        def echo(items: list[Any]) -> list[Any]:
            return items

        for item in items:
            echo.delay(item)
        singles = [published(redis_client) for _ in items]
        echo.delay_many(items)
        assert [published(redis_client) for _ in items] == singles
        assert singles[0]["headers"]["argsrepr"] == shown


def published(client: redis.Redis) -> dict[str, Any]:
    """The oldest message, without what tells it from its like."""
    raw: Any = client.rpop("celery")
    assert decode(raw, ACCEPT) is not None, "a worker would take the slow way"
    message: dict[str, Any] = kombu_json.loads(raw)
    headers, properties = message["headers"], message["properties"]
    for name in ("id", "root_id", "batchery_enqueued_at"):
        assert headers.pop(name)
    for name in ("correlation_id", "delivery_tag", "reply_to", "argsrepr"):
        properties.pop(name, None)
    # Arrays are not simply equal; their text shows three cells from either end.
    message["body"] = repr(loads(base64.b64decode(message["body"])))
    return message
