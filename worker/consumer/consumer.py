"""The consumer of a Batchery worker: Celery's own, except that an engine beside it claims the tasks in bulk."""

import logging
import os
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.concurrency import solo, thread
from celery.concurrency.base import BasePool
from celery.exceptions import CeleryCommandException, ImproperlyConfigured
from celery.utils.functional import noop
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request
from kombu import Message
from kombu.serialization import prepare_accept_content

from ...configs.configuration import ConfigurationError
from ...producer.private import QuietConsumer
from .. import tuning
from ..broker.retry import RedisRetry
from ..engine import Engine
from .compat import broadcast
from .compat.broker import ReconnectingBlueprint
from .compat.ownership import forgetting_failures
from .compat.patience import Patience
from .compat.pool import report_errors
from .compat.refusals import RefusingConsumer
from .compat.worker_exit import StopLimit
from .compat.worker_state import is_cold_shutdown
from .engine_parts import EngineParts
from .settings import Settings
from .setup import configuration_of

logger = logging.getLogger(__name__)


class Batching(bootsteps.StartStopStep):
    """Adds the engine's statistics to `inspect stats`, where Flower shows them too, and checks the worker regularly."""

    requires = (Tasks,)
    _timer: Any = None

    def start(self, c: "BatchConsumer") -> None:
        """Begin the checks, with each connection to the broker, because Celery clears its timer when it loses one."""
        period_s = max(tuning.CHECK_OWNERS_S, c.settings.worker.lease_s / tuning.REFRESHES_PER_LEASE)

        def check() -> None:
            if c.engine is not None:
                c.parts.check()

        self._timer = c.timer.call_repeatedly(period_s, check)

    def stop(self, c: "BatchConsumer") -> None:
        """End the checks."""
        if self._timer is not None:  # the connection may have been lost before the checks began
            c.timer.cancel(self._timer)

    def info(self, c: "BatchConsumer") -> dict[str, object]:
        """Return the statistics under one name."""
        if c.engine is None:
            return {"batchery": "starting"}
        return {"batchery": {**c.engine.stats(), "hung": c.engine.state.hung, **c.retry.outage.report()}}


class BatchConsumer(RefusingConsumer):
    """Celery's consumer, with an engine beside its event loop."""

    engine: Engine | None = None

    class Blueprint(ReconnectingBlueprint):
        """Celery's steps, and one for the engine's statistics."""

        default_steps = (*Consumer.Blueprint.default_steps, Batching)

    def __init__(self, on_task_request: Callable[[Request], object], init_callback: Any = noop, **kwargs: Any) -> None:
        """Get ready, if this app and this pool can work."""
        app: Celery = kwargs["app"]
        _prepare(app, kwargs["pool"])
        self.retry = RedisRetry()
        patience = Patience(app, self.retry, lambda: self.parts.leases)
        report_errors(kwargs["pool"], lambda request, error: self._bridge.give_up(request, error), patience.traced)
        app.amqp.Consumer = QuietConsumer
        try:
            self.settings = Settings(app, configuration_of(app))
        except ConfigurationError as error:  # one that Celery's command line shows without a traceback
            raise CeleryCommandException(f"{error}", exit_code=os.EX_CONFIG) from error
        logger.info(
            "Configuration: %s. Batch tasks: %s.", self.settings.source, ", ".join(self.settings.tasks) or "none"
        )
        self.accept = prepare_accept_content(app.conf.accept_content)
        self.handle_message: Callable[[Message], object] = noop
        self._to_pool = on_task_request
        self._stop_limit = StopLimit(self.settings.worker, self.retry.outage, self.settings.tasks)
        super().__init__(forgetting_failures(self._on_task_request), init_callback, **kwargs)

    def _on_task_request(self, request: Request) -> None:
        name = request.task.name
        if name in self.settings.tasks:
            self._bridge.take(request)
        elif name in self.settings.unserved:
            self._bridge.leave_to_others(request)
        elif self._bridge.enter_pool(request):
            self._to_pool(request)

    def call_soon_ack(self, p: Callable[..., object], *args: Any, **kwargs: Any) -> object:
        """Acknowledge at once, because that only fills a buffer, and works while the event loop stops, too."""
        p(*args, **kwargs)
        return p

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], object]:
        """Return Celery's handler; the first time, load the models and start the engine."""
        self.handle_message = super().create_task_handler(*args, **kwargs)
        if self.engine is None:
            self._start_engine()
        else:
            self.parts.hub_calls.tick()
        return broadcast.receiving(self.hostname, self.settings.tasks, self.settings.unserved, self.handle_message)

    def _start_engine(self) -> None:
        parts = self.parts = EngineParts(self, self.settings, self.retry)
        self._bridge = parts.bridge
        parts.start()
        self.engine = parts.engine

    def on_close(self) -> None:
        """Drop requests before a reconnect, as Celery does, and give them back, because our leases stay valid."""
        if self.engine is not None:
            self._bridge.connection_lost()
        super().on_close()

    def cancel_active_requests(self) -> None:
        """Cancel nothing in a cold shutdown, because a thread cannot be ended; what runs goes back to its queue."""

    def stop(self) -> None:
        """Drain the engine, then stop as Celery does. A cold shutdown does not wait for the running batch."""
        self._stop_limit.start()
        timeout = 0.0 if is_cold_shutdown() else self.settings.worker.drain_timeout_s
        if self.engine is not None and not self.engine.drain(timeout):
            logger.error("The running batch did not end in %.0f s: its jobs run elsewhere.", timeout)
        super().stop()

    def shutdown(self) -> None:
        """Stop as Celery does; by then the pool has stopped, too, so give back what is left."""
        super().shutdown()
        if self.engine is not None:
            self.parts.leave()
            self.engine = None
        self._stop_limit.cancel()


def _prepare(app: Celery, pool: object) -> None:
    """Refuse an app or a pool that cannot work, and change the app's settings that its backends need."""
    _refuse_other_brokers(app)
    _refuse_other_pools(pool)
    _let_backends_try_again(app)


def _let_backends_try_again(app: Celery) -> None:
    """Let the backends of plain tasks' threads try again while their server is away, unless the app says otherwise."""
    if app.backend.thread_safe:  # made now, so that the event loop's own backend never waits
        return
    for name, value in tuning.RESULT_RETRIES.items():
        if not app.conf.value_set_for(name):
            app.conf[name] = value


def _refuse_other_brokers(app: Celery) -> None:
    connection = app.connection_for_read()
    if connection.transport.driver_type != "redis":
        raise ImproperlyConfigured(
            f"Batchery claims from Redis or Valkey, but the broker is {connection.as_uri()}. "
            "Use a redis:// broker, or leave out batchery.setup(app)."
        )


def _refuse_other_pools(pool: BasePool) -> None:
    if not isinstance(pool, thread.TaskPool | solo.TaskPool):
        raise ImproperlyConfigured(
            f"Batchery cannot run with the pool {type(pool).__module__}: batches run on a thread of the worker's main "
            "process, where a forked pool would lose the GPU and green threads would stand still. "
            "Leave out -P (plain tasks then run in threads, as many as -c says), or use -P threads or -P solo."
        )
