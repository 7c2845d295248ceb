"""The callers' side of a worker of `tests.support.apps`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from celery import Celery

from tests.support.apps import make_app


@contextmanager
def calling(broker: str, backend: str | None = None, **conf: Any) -> Iterator[Celery]:
    """The app as a calling service has it; its connections are gone afterwards."""
    app = make_app(broker, backend, **conf)
    app.finalize()
    try:
        yield app
    finally:
        disconnect(app)


def disconnect(app: Celery) -> None:
    """Close a caller's connections."""
    if hasattr(app.backend, "result_consumer"):
        app.backend.result_consumer.stop()
        app.backend.client.close()
        # The results of a test that failed live on in its traceback, longer than their server.
        app.backend.remove_pending_result = lambda result: result
    app.close()


def options(**values: Any) -> dict[str, str]:
    """The environment that gives a worker these `WorkerOptions`."""
    return {"OPTIONS": json.dumps(values)}


def unsettled(client: redis.Redis) -> dict[bytes, int]:
    """How many messages of each queue are claimed and not settled."""
    counts = {key: client.hlen(key) for key in client.scan_iter("batchery:unacked:*")}
    return {key: count for key, count in counts.items() if count}


@contextmanager
def held_back(app: Celery, client: redis.Redis, queue: str = "celery") -> Iterator[None]:
    """The one worker leaves `queue` alone during the block, and claims together what was sent to it meanwhile."""
    aside = f"test:aside:{queue}"
    client.rename(queue, aside) if client.exists(queue) else None
    app.control.cancel_consumer(queue, reply=True)
    try:
        yield
    finally:
        app.control.add_consumer(queue, reply=True, limit=1)
