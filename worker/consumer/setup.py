"""setup: makes an app's workers run batch tasks in batches."""

from typing import Any

from celery import Celery

from ...configs import WorkerOptions

CONSUMER = "batchery.worker.consumer.consumer:BatchConsumer"
_STOCK_CONSUMER = "celery.worker.consumer:Consumer"


def setup(app: Celery, options: WorkerOptions | None = None) -> None:
    """Make the workers of `app` run its `BatchTask`s in batches; call it where the app is made.

    It chooses the consumer, and the pool in which plain tasks run; whatever of these the app sets by itself stays.
    A caller's process needs no setup, and is not changed by it.
    """
    app.batchery_options = options or WorkerOptions()
    # Not weak: nobody else holds on to the function.
    app.on_after_configure.connect(_choose_consumer_and_pool, sender=app, weak=False)
    if app.configured:
        _choose_consumer_and_pool(app)


def options_of(app: Celery) -> WorkerOptions:
    """Return the options that `setup` was given for `app`."""
    return getattr(app, "batchery_options", None) or WorkerOptions()


def _choose_consumer_and_pool(sender: Celery, **_: Any) -> None:
    for name, value in (("worker_consumer", CONSUMER), ("worker_pool", "threads")):
        if not sender.conf.value_set_for(name):
            sender.conf[name] = value
    if sender.conf.worker_consumer == _STOCK_CONSUMER:
        raise ValueError(
            f"worker_consumer is set to {_STOCK_CONSUMER}, which takes tasks one by one. Remove that setting, or leave "
            f"out batchery.setup(app)."
        )
