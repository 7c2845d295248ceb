"""Preloaded queues, which hold thousands of real Celery messages that become ready at one moment.

A benchmark measures the time until all of them are answered.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from celery import Celery

from tests.support.waiting import wait_until

QUEUE = "bench"
PREPARED = "bench-prepared"
RESULT_PREFIX = "celery-task-meta-"


class Load:
    """Messages for `QUEUE` on one server.

    Make a `Load` before a worker listens, because it sends one message through the queue and takes it out as its model.
    """

    def __init__(self, url: str, task: str, value: Any) -> None:
        self._client: redis.Redis = redis.Redis.from_url(url)
        self._template = _real_message(url, task, value)

    def close(self) -> None:
        self._client.close()

    def prepare(self, count: int) -> list[str]:
        """Put `count` messages under a name that no worker reads, and return their task ids."""
        ids = [str(uuid.uuid4()) for _ in range(count)]
        for start in range(0, count, 1000):
            self._client.lpush(PREPARED, *(self._message(task_id) for task_id in ids[start : start + 1000]))
        return ids

    def prepare_each(self, values: Sequence[Any]) -> list[str]:
        """Prepare one message for each of `values`, which is the argument of its task, and return their task ids."""
        ids = [str(uuid.uuid4()) for _ in values]
        for task_id, value in zip(ids, values, strict=True):
            message = json.loads(self._message(task_id))
            _, kwargs, embed = json.loads(base64.b64decode(message["body"]))
            message["body"] = base64.b64encode(json.dumps([[value], kwargs, embed]).encode()).decode()
            self._client.lpush(PREPARED, json.dumps(message))
        return ids

    def release(self, ids: list[str], alive: Callable[[], object] = lambda: None, timeout: float = 300.0) -> float:
        """Make all prepared messages ready at once, and return the seconds until each has its result.

        `alive` may raise an exception to end the wait early, for example because the worker has died.
        """
        keys = [RESULT_PREFIX + task_id for task_id in ids]
        others = self._client.dbsize()
        start = time.perf_counter()
        self._client.rename(PREPARED, QUEUE)

        def answered() -> bool:
            alive()
            # Counting all keys is cheap, so our own keys are counted only when nearly enough keys exist. The margin is
            # for the few keys of queues and leases, which come and go meanwhile.
            return self._client.dbsize() >= others + len(keys) - 8 and self._client.exists(*keys) == len(keys)

        wait_until(answered, f"{len(keys)} results", timeout)
        return time.perf_counter() - start

    def check(self, ids: list[str]) -> None:
        """Raise a RuntimeError unless every task has succeeded, because a fast failure is no throughput."""
        for task_id in ids:
            result: Any = self._client.get(RESULT_PREFIX + task_id)
            if b'"status":"SUCCESS"' not in (result or b"").replace(b" ", b"")[:40]:
                raise RuntimeError(f"task {task_id} was answered with {result!r}")

    def _message(self, task_id: str) -> bytes:
        message, placeholder, tag = self._template
        return message.replace(placeholder, task_id.encode()).replace(tag, str(uuid.uuid4()).encode())


@contextmanager
def load(url: str, task: str, value: Any) -> Iterator[Load]:
    prepared = Load(url, task, value)
    try:
        yield prepared
    finally:
        prepared.close()


def _real_message(url: str, task: str, value: Any) -> tuple[bytes, bytes, bytes]:
    """Return a message as Celery's own producer writes it, its task id and its delivery tag."""
    with Celery(broker=url, set_as_current=False) as app, redis.Redis.from_url(url) as client:
        result = app.send_task(task, args=[value], queue=QUEUE)
        message: Any = client.rpop(QUEUE)
    if message is None:
        raise RuntimeError(f"A worker already reads the queue {QUEUE!r}. Stop it before the benchmark starts.")
    tag: bytes = message.rpartition(b'"delivery_tag": "')[2].partition(b'"')[0]
    return message, str(result.id).encode(), tag
