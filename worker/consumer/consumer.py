"""The consumer of a Batchery worker: Celery's own, except that tasks are claimed in bulk.

Names of Celery's and kombu's that are private, or might as well be, and that this package relies on; each has a test:

- `celery.worker.consumer.Consumer`: `on_task_request`, `create_task_handler`, `on_invalid_task`, `on_decode_error`,
  `on_unknown_message`, `call_soon_ack`, `stop`, `shutdown`, `task_consumer`, `event_dispatcher`, `strategies`,
  `Blueprint.default_steps`
- `app.amqp.Consumer`, the class of the worker's task consumer; `app.amqp.Router`, `app.amqp.queues.consume_from`
- kombu's Redis channel: `pool`, `priority_steps`, `sep`, `global_keyprefix`
- `celery.worker.state`: `task_reserved`, `task_ready`, `requests`, `active_requests`, `scheduled_requests`,
  `total_count`, `all_total_count`, `revoked`, `should_stop`
- `celery.backends.redis`: `RedisBackend.on_chord_part_return`, its `CHORD_PART_RETURN_LUA`, `_chord_zset` and
  `_chord_result_expires`
- `celery.worker.request.Request`, its `_payload`, and `celery.app.trace.build_tracer`, `task_has_custom`
"""

import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from celery import bootsteps
from celery.concurrency import solo, thread
from celery.exceptions import CeleryCommandException, ImproperlyConfigured, InvalidTaskError
from celery.utils.functional import noop
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks
from kombu import Consumer as KombuConsumer
from kombu.serialization import prepare_accept_content

from ...batchers import BatcheryError
from ...configs import ConfigurationError
from ..broker import ArrivalWatcher, Leases, Queue, connect
from ..broker.lease_refresher import LeaseRefresher
from ..engine import Engine
from .compat.hub import HubCalls
from .fast.result_store import ResultStore
from .front import BrokerFront
from .settings import settings_of

logger = logging.getLogger(__name__)

_ASKS_FOR_PREFORK = re.compile(r" (-P ?|--pool[= ])prefork\b")

#: Python's own, up to 3.13; and ours: new objects after which a collection looks at the new ones.
_DEFAULT_GC_THRESHOLD, _GC_THRESHOLD = 700, 20_000


class QuietConsumer(KombuConsumer):
    """Knows the worker's queues but fetches from none of them: the engine claims instead.

    Broadcast queues are no lists but Redis channels: those are fetched from as ever.
    """

    def _basic_consume(self, queue: Any, *args: Any, **kwargs: Any) -> None:
        if queue.exchange.type == "fanout":
            super()._basic_consume(queue, *args, **kwargs)
        else:
            self._active_tags[queue.name] = queue.name


class Batching(bootsteps.StartStopStep):
    """Adds the engine's figures to `inspect stats`, where Flower shows them too."""

    requires = (Tasks,)

    def info(self, c: Any) -> dict[str, Any]:
        """Return the figures under one name."""
        return {"batchery": {**c.engine.stats(), "hung": c.engine.hung} if c.engine else "starting"}


class BatchConsumer(Consumer):
    """Celery's consumer, with the engine beside its hub."""

    engine: Engine | None = None

    class Blueprint(Consumer.Blueprint):
        """Celery's steps, and ours for the figures."""

        default_steps = (*Consumer.Blueprint.default_steps, Batching)

    def __init__(self, on_task_request: Callable[[Any], None], init_callback: Any = noop, **kwargs: Any) -> None:
        """Get ready, if this app and this pool can work."""
        app, pool = kwargs["app"], kwargs["pool"]
        _refuse_what_cannot_work(app, pool)
        app.amqp.Consumer = QuietConsumer
        try:
            self.settings = settings_of(app)
        except ConfigurationError as error:  # one that Celery's command line shows without a traceback
            raise CeleryCommandException(f"{error}", exit_code=os.EX_CONFIG) from error
        self.batch_tasks = self.settings.tasks
        self._options = self.settings.worker
        logger.info("Configuration: %s. Batch tasks: %s.", self.settings.source, ", ".join(self.batch_tasks) or "none")
        self.accept = prepare_accept_content(app.conf.accept_content)
        self.handle_message: Callable[[Any], None] = noop
        self._to_pool = on_task_request
        super().__init__(self._on_task_request, init_callback, **kwargs)

    def _on_task_request(self, request: Any) -> None:
        name = request.task.name
        if name in self.batch_tasks:
            self._front.unusual.take(request)
        elif name in self.settings.unserved:
            self._front.unusual.leave_to_others(request)
        else:
            self._to_pool(request)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return Celery's handler; the first time, load the models and start the engine."""
        self.handle_message = super().create_task_handler(*args, **kwargs)
        if self.engine is None:
            self._start_engine()
        else:
            self._hub_calls.revive()
        return self.handle_message

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Tell the caller what is wrong with its message; Celery would drop it and leave the caller waiting."""
        self._front.unusual.refuse(message.delivery_tag, exc)
        super().on_invalid_task(body, message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """As `on_invalid_task`."""
        self._front.unusual.refuse(message.delivery_tag, exc)
        super().on_decode_error(message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """As `on_invalid_task`."""
        self._front.unusual.refuse(message.delivery_tag, InvalidTaskError("a message that is no task's"))
        super().on_unknown_message(body, message)

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge at once: that only puts it in line for the next settle, also while the hub is stopping."""
        p(*args, **kwargs)
        return p

    def on_close(self) -> None:
        """Let go of what a reconnect forgets, as Celery does; our leases outlive the connection, so give it back."""
        if self.engine is not None:
            self._front.unusual.connection_lost()
        super().on_close()

    def stop(self) -> None:
        """Drain the engine, then stop as Celery does."""
        if self.engine is not None:
            done = self.engine.drain(self._options.drain_timeout_s)
            if not done:
                logger.error(
                    "The running batch did not end in %.0f s: its jobs run elsewhere.", self._options.drain_timeout_s
                )
        super().stop()

    def shutdown(self) -> None:
        """Stop as Celery does; by now the pool has stopped too: give back what is left."""
        super().shutdown()
        if self.engine is not None:
            self._keeper.stop()
            self._front.close()
            self.engine = None

    def _start_engine(self) -> None:
        options = self._options
        channel = self.connection.default_channel
        client = connect(channel.pool.connection_class, channel.pool.connection_kwargs)
        leases = Leases(client, lease_s=options.lease_s)
        self._hub_calls = HubCalls(self.hub)
        self._front = BrokerFront(
            self,
            leases,
            ArrivalWatcher(client),
            ResultStore(self.app, leases, client),
            self._hub_calls,
            queues=self._queues,
            max_bytes=(options.claim_max_bytes, options.held_max_bytes),
        )
        engine = Engine(self.batch_tasks, self._front, options)
        try:
            engine.load()
        except Exception as exc:
            # In words of our own: a KeyError or an OSError would be a lost connection to Celery, and tried again.
            raise BatcheryError(f"This worker cannot serve, a model could not be loaded: {exc!r}") from exc
        _spare_the_collector()
        self._front.attach(engine)
        self._keeper = LeaseRefresher(
            leases,
            self._queues,
            lease_s=options.lease_s,
            stalled=lambda: engine.hung,
            on_stalled=self._front.release_waiting,
        )
        self._keeper.start()
        engine.start()
        self.engine = engine

    def _queues(self) -> Sequence[Queue]:
        consumer = self.task_consumer
        if consumer is None or consumer.channel is None:  # Celery is reconnecting
            return self._last_queues
        channel = consumer.channel
        self._last_queues = [
            Queue(queue.name, channel.global_keyprefix, tuple(channel.priority_steps), channel.sep)
            for queue in tuple(consumer.queues)
            if queue.exchange.type != "fanout"
        ]
        return self._last_queues

    _last_queues: Sequence[Queue] = ()


def _spare_the_collector() -> None:
    """Make the garbage collector's work fit a worker: it took a fifth of the time that a no-op task costs us.

    What is there once the models are loaded stays, and need not be walked through again and again; and each job makes
    some ten objects that live until it is settled, so that the default threshold of 700 is passed every few ms.
    """
    gc.collect()
    gc.freeze()
    if gc.get_threshold()[0] == _DEFAULT_GC_THRESHOLD:  # the app has not chosen another
        gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])


def _refuse_what_cannot_work(app: Any, pool: Any) -> None:
    if app.connection_for_read().transport.driver_type != "redis":
        raise ImproperlyConfigured(
            f"Batchery claims from Redis or Valkey, but the broker is {app.connection_for_read().as_uri()}. "
            "Use a redis:// broker, or leave out batchery.setup(app)."
        )
    # Celery takes "-P prefork" for no choice at all where the app has set another pool.
    asked_for_prefork = _ASKS_FOR_PREFORK.search(" ".join(sys.argv)) is not None
    if not isinstance(pool, thread.TaskPool | solo.TaskPool) or asked_for_prefork:
        raise ImproperlyConfigured(
            f"Batchery cannot run with the pool {type(pool).__module__}: batches run on a thread of the worker's main "
            "process, where a forked pool would lose the GPU and green threads would stand still. "
            "Leave out -P (plain tasks then run in threads, as many as -c says), or use -P threads or -P solo."
        )
