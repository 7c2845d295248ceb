"""The tasks of a chaos run with celery-batches, as in its documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery_batches import Batches, SimpleRequest

from . import work
from .plain_tasks import add_plain_tasks
from .settings import MAX_BATCH_SIZE, VISIBILITY, conf, url

app = Celery("chaos", broker=url(), backend=url())
app.conf.update(conf(worker_prefetch_multiplier=MAX_BATCH_SIZE, broker_transport_options=VISIBILITY))
OPTIONS: dict[str, Any] = {"base": Batches, "flush_every": MAX_BATCH_SIZE, "flush_interval": 0.1}


def run(requests: Sequence[SimpleRequest]) -> None:
    outputs = work.run([request.args[0] for request in requests])
    for request, output in zip(requests, outputs, strict=True):
        if isinstance(output, Exception):
            app.backend.mark_as_failure(
                request.id, output
            )  # a SimpleRequest has no errbacks, which Celery would look for
        else:
            app.backend.mark_as_done(request.id, output, request=request)


@app.task(name="model", **OPTIONS)
def model(requests: Sequence[SimpleRequest]) -> None:
    run(requests)


@app.task(name="hooked", **OPTIONS)
def hooked(requests: Sequence[SimpleRequest]) -> None:
    run(requests)


add_plain_tasks(app)
