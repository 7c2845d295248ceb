"""No-op tasks of Batchery with its defaults.

The environment sets `MAX_BATCH_SIZE` and `BATCH_MS`, the time that a simulated device takes for a batch.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from batchery import BatchTask, setup

from ..backlog import QUEUE
from .payloads import VECTOR

app = Celery("batchery", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.task_default_queue = os.environ.get("QUEUE", QUEUE)
setup(app)

BATCH_S = float(os.environ.get("BATCH_MS", "0")) / 1000
OPTIONS = {"base": BatchTask, "max_batch_size": int(os.environ.get("MAX_BATCH_SIZE", "256"))}


@app.task(name="small", **OPTIONS)
def small(values: list[Any]) -> list[Any]:
    if BATCH_S:
        time.sleep(BATCH_S)
    return values


@app.task(name="vector", **OPTIONS)
def vector(values: list[Any]) -> list[list[float]]:
    return [VECTOR for _ in values]


@app.task(name="large", **OPTIONS)
def large(values: list[str]) -> list[int]:
    return [len(value) for value in values]


@app.task(name="gather")
def gather(values: list[Any]) -> int:
    """Count the results of a chord, as its callback."""
    return len(values)
