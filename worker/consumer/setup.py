"""setup: makes an app's workers run batch tasks in batches."""

import os
from pathlib import Path
from typing import Any

from celery import Celery

from ...configs import WorkerOptions
from ...configs.configuration import Configuration, load_configuration
from ...producer.codec import serializer
from ...producer.connections import limit_connections
from . import control  # noqa: F401 - Celery's command line knows only the commands of modules that are imported

CONSUMER = "batchery.worker.consumer.consumer:BatchConsumer"
_STOCK_CONSUMER = "celery.worker.consumer:Consumer"


def setup(app: Celery, config: WorkerOptions | str | Path | None = None) -> None:
    """Make the workers of `app` run its `BatchTask`s in batches; call it where the app is made.

    `config` is the name of a shipped preset (default, cpu, gpu), the path of a TOML file, or options; without it
    `BATCHERY_CONFIG` names a preset or a file. It is read by the worker: a caller needs no such file.

    It chooses the consumer, the pool in which plain tasks run, and the content that is accepted: arrays, too. Whatever
    of these the app sets by itself stays. A caller's process needs no setup, except to accept results with arrays.
    """
    if config is not None and not isinstance(config, WorkerOptions | str | Path):
        raise TypeError(f"setup(app, {config!r}): give a preset's name, the path of a TOML file, or WorkerOptions.")
    app.batchery_config = config
    # Not weak: nobody else holds on to the function.
    app.on_after_configure.connect(_fill_in_settings, sender=app, weak=False)
    if app.configured:
        _fill_in_settings(app)


def configuration_of(app: Celery) -> Configuration:
    """Return what holds for a worker of `app`, as `setup` was told, or else the environment, with its problems."""
    return load_configuration(getattr(app, "batchery_config", None), os.environ)


def _fill_in_settings(sender: Celery, **_: Any) -> None:
    accepted = [*(sender.conf.accept_content or ()), serializer.NAME]
    for name, value in (("worker_consumer", CONSUMER), ("worker_pool", "threads"), ("accept_content", accepted)):
        if not sender.conf.value_set_for(name):
            sender.conf[name] = value
    limit_connections(sender)
    if sender.conf.worker_consumer == _STOCK_CONSUMER:
        reason = f"worker_consumer is set to {_STOCK_CONSUMER}, which takes tasks one by one."
        raise ValueError(f"{reason} Remove that setting, or leave out batchery.setup(app).")
