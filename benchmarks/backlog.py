"""Preloaded queues: thousands of real Celery messages that become ready in one instant, and the time until all are
answered."""

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
    """Messages for `QUEUE` on one server. Make it before a worker listens there: it takes Celery's message from it."""

    def __init__(self, url: str, task: str, value: Any) -> None:
        self._client: redis.Redis = redis.Redis.from_url(url)
        self._template = _real_message(url, task, value)

    def close(self) -> None:
        self._client.close()

    def prepare(self, count: int) -> list[str]:
        """Put `count` messages under a name that nobody reads; returns their task ids."""
        ids = [str(uuid.uuid4()) for _ in range(count)]
        for start in range(0, count, 1000):
            self._client.lpush(PREPARED, *(self._message(task_id) for task_id in ids[start : start + 1000]))
        return ids

    def prepare_each(self, values: Sequence[Any]) -> list[str]:
        """The same with one message for each of `values`, which is its task's argument."""
        ids = [str(uuid.uuid4()) for _ in values]
        for task_id, value in zip(ids, values, strict=True):
            message = json.loads(self._message(task_id))
            _, kwargs, embed = json.loads(base64.b64decode(message["body"]))
            message["body"] = base64.b64encode(json.dumps([[value], kwargs, embed]).encode()).decode()
            self._client.lpush(PREPARED, json.dumps(message))
        return ids

    def release(self, ids: list[str], alive: Callable[[], object] = lambda: None, timeout: float = 300.0) -> float:
        """Make the prepared messages ready, all at once; returns the seconds until each has its result.

        `alive` may raise, to end a wait that a dead worker would make long.
        """
        keys = [RESULT_PREFIX + task_id for task_id in ids]
        others = self._client.dbsize()
        start = time.perf_counter()
        self._client.rename(PREPARED, QUEUE)

        def answered() -> bool:
            alive()
            # Counting all keys is cheap; only when that is nearly enough ask for ours. Queue and lease keys come and
            # go meanwhile, a handful.
            return self._client.dbsize() >= others + len(keys) - 8 and self._client.exists(*keys) == len(keys)

        wait_until(answered, f"{len(keys)} results", timeout)
        return time.perf_counter() - start

    def check(self, ids: list[str]) -> None:
        """Every task must have succeeded: a fast failure is no throughput."""
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
    """A message as Celery's own producer writes it, its task id and its delivery tag."""
    with Celery(broker=url, set_as_current=False) as app, redis.Redis.from_url(url) as client:
        result = app.send_task(task, args=[value], queue=QUEUE)
        message: Any = client.rpop(QUEUE)
    if message is None:
        raise RuntimeError(f"somebody else reads the queue {QUEUE!r}")
    tag: bytes = message.rpartition(b'"delivery_tag": "')[2].partition(b'"')[0]
    return message, str(result.id).encode(), tag
