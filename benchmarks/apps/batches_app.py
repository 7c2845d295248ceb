"""No-op tasks of celery-batches, as in its documentation, with batches of 64 and a prefetch that can fill them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery_batches import Batches, SimpleRequest

from ..backlog import QUEUE
from .payloads import VECTOR

app = Celery("batches", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(task_acks_late=True, task_default_queue=os.environ.get("QUEUE", QUEUE), worker_prefetch_multiplier=256)
OPTIONS = {"base": Batches, "flush_every": 64, "flush_interval": 0.1}


def answer(requests: Sequence[SimpleRequest], results: Sequence[Any]) -> None:
    for request, result in zip(requests, results, strict=True):
        app.backend.mark_as_done(request.id, result, request=request)


@app.task(name="small", **OPTIONS)
def small(requests: Sequence[SimpleRequest]) -> None:
    answer(requests, [request.args[0] for request in requests])


@app.task(name="vector", **OPTIONS)
def vector(requests: Sequence[SimpleRequest]) -> None:
    answer(requests, [VECTOR for _ in requests])


@app.task(name="large", **OPTIONS)
def large(requests: Sequence[SimpleRequest]) -> None:
    answer(requests, [len(request.args[0]) for request in requests])
