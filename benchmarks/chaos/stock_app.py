"""The tasks of a chaos run with stock Celery."""

from __future__ import annotations

from typing import Any

from celery import Celery

from . import work
from .plain_tasks import add_plain_tasks
from .settings import BATCH_TIME_LIMIT_S, MAX_RETRIES, VISIBILITY, conf, url
from .work import Spec

app = Celery("chaos", broker=url(), backend=url())
app.conf.update(
    conf(task_time_limit=BATCH_TIME_LIMIT_S, worker_prefetch_multiplier=1, broker_transport_options=VISIBILITY)
)


def run(spec: Spec) -> Any:
    (output,) = work.run([spec])
    if isinstance(output, Exception):
        raise output
    return output


@app.task(name="model")
def model(spec: Spec) -> Any:
    return run(spec)


@app.task(name="flaky", autoretry_for=(work.Flaky,), max_retries=MAX_RETRIES, default_retry_delay=0)
def flaky(spec: Spec) -> Any:
    return run(spec)


@app.task(name="follow")
def follow(previous: Any, spec: Spec) -> Any:
    run(spec)
    return work.follow(previous, spec)


@app.task(name="hooked", bind=True)
def hooked(self: Any, spec: Spec) -> Any:
    with work.noted("preprocess", [spec]):
        work.act(spec, "preprocess")
    if work.wants_retry(spec):
        raise self.retry(countdown=0, max_retries=MAX_RETRIES)
    result = run(spec)
    with work.noted("postprocess", [spec]):
        work.act(spec, "postprocess")
    return result


add_plain_tasks(app)
