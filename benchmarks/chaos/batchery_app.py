"""The tasks of a chaos run with Batchery."""

from __future__ import annotations

from typing import Any

from celery import Celery

from batchery import BatchTask, WorkerOptions, setup

from . import work
from .plain_tasks import add_plain_tasks
from .settings import BATCH_TIME_LIMIT_S, DRAIN_TIMEOUT_S, LEASE_S, MAX_BATCH_SIZE, MAX_RETRIES, conf, url
from .work import Spec

app = Celery("chaos", broker=url(), backend=url())
app.conf.update(conf())
setup(app, WorkerOptions(lease_s=LEASE_S, drain_timeout_s=DRAIN_TIMEOUT_S, device="cpu"))

OPTIONS: dict[str, Any] = {
    "base": BatchTask,
    "max_batch_size": MAX_BATCH_SIZE,
    "batch_time_limit_s": BATCH_TIME_LIMIT_S,
}


def size(spec: Spec) -> int:
    return int(spec["size"])


@app.task(name="model", length=size, **OPTIONS)
def model(specs: list[Spec]) -> list[Any]:
    return work.run(specs)


@app.task(name="flaky", autoretry_for=(work.Flaky,), max_retries=MAX_RETRIES, default_retry_delay=0, **OPTIONS)
def flaky(specs: list[Spec]) -> list[Any]:
    return work.run(specs)


@app.task(name="follow", **OPTIONS)
def follow(previous: list[Any], specs: list[Spec]) -> list[Any]:
    work.run(specs)
    return [work.follow(before, spec) for before, spec in zip(previous, specs, strict=True)]


class Hooked(BatchTask):
    name = "hooked"
    max_batch_size = MAX_BATCH_SIZE
    batch_time_limit_s = BATCH_TIME_LIMIT_S

    def preprocess(self, spec: Spec) -> Spec:
        with work.noted("preprocess", [spec]):
            work.act(spec, "preprocess")
        if work.wants_retry(spec):
            raise self.retry(countdown=0, max_retries=MAX_RETRIES)
        return spec

    def predict(self, specs: list[Spec]) -> list[Any]:
        answers = work.run(specs)
        return [{"spec": spec, "answer": each} for spec, each in zip(specs, answers, strict=True)]

    def postprocess(self, output: Any) -> Any:
        with work.noted("postprocess", [output["spec"]]):
            work.act(output["spec"], "postprocess")
        return output["answer"]


app.register_task(Hooked())
add_plain_tasks(app)
