"""No-op tasks of stock Celery with its defaults, results, and late acknowledgements, which a GPU worker needs."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from ..backlog import QUEUE
from .payloads import VECTOR

app = Celery("stock", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(task_acks_late=True, task_default_queue=os.environ.get("QUEUE", QUEUE))


@app.task(name="small")
def small(value: Any) -> Any:
    return value


@app.task(name="vector")
def vector(_value: Any) -> list[float]:
    return VECTOR


@app.task(name="large")
def large(value: str) -> int:
    return len(value)


@app.task(name="gather")
def gather(values: list[Any]) -> int:
    """Count the results of a chord, as its callback."""
    return len(values)
