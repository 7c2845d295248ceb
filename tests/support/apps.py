"""The app of the workers that tests start: `celery -A tests.support.apps worker`. `make_app` makes a caller's."""

from __future__ import annotations

import json
import os
from typing import Any

from batchery.configs import WorkerOptions
from batchery.worker import tuning
from batchery.worker.engine import runner
from celery import Celery, signals

from batchery import BatchTask, setup
from tests.support.control_flow import Asks, add_rejecting
from tests.support.models import (
    SEEN,
    Fatal,
    GatedPreprocess,
    Hooked,
    Missing,
    Prepared,
    Texts,
    add_computations,
    add_echoes,
    add_failures,
    add_miscounts,
    add_plain_tasks,
    note,
)

#: The name of this module, as `celery -A` takes it.
APP = "tests.support.apps"


def make_app(broker: str, backend: str | None = None, **conf: Any) -> Celery:
    app = Celery("consumer-tests", broker=broker, backend=backend or broker, set_as_current=False)
    app.conf.update(
        task_default_queue="celery",
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        **conf,
    )
    register(app)
    return app


def _lost_device(device: str) -> None:
    raise RuntimeError(f"the device {device} is lost")


def register(app: Celery) -> None:
    """Give an app all tasks of these tests."""

    def batch_task(**options: Any) -> Any:
        return app.task(base=BatchTask, shared=False, **options)

    add_echoes(app, batch_task)
    add_computations(batch_task)
    add_failures(app, batch_task)
    add_miscounts(batch_task)
    add_plain_tasks(app)
    add_rejecting(app)
    if "LOAD_ERROR" in os.environ:
        app.register_task(Missing())
    for model in (Asks, Fatal, Prepared, Hooked, Texts, GatedPreprocess):
        app.register_task(model())


if "BROKEN_DEVICE" in os.environ:  # a worker that looks at its device after an error finds it lost
    runner.check_device = _lost_device
vars(tuning).update(json.loads(os.environ.get("TUNING", "{}")))
app = make_app(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:1/0"),
    os.environ.get("RESULTS_URL"),
    **json.loads(os.environ.get("CONF", "{}")),
)
setup(app, WorkerOptions(**json.loads(os.environ["OPTIONS"])) if "OPTIONS" in os.environ else None)


def watch(name: str) -> None:
    """Write down for which jobs Celery's signal `name` is sent."""

    def seen(sender: Any, task_id: str | None = None, request: Any = None, **_: Any) -> None:
        note(app, SEEN, [name, task_id or (request or sender.request).id])

    getattr(signals, name).connect(seen, weak=False)


for name in json.loads(os.environ.get("SIGNALS", "[]")):
    watch(name)
