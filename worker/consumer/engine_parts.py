"""The engine of a Celery worker and the parts around it: made, started and left together."""

import gc
import logging
from collections.abc import Sequence
from functools import partial

import kombu
import redis
from celery.worker.consumer import Consumer
from kombu.transport.redis import Channel

from ...batchers import BatcheryError
from .. import tuning
from ..broker import ArrivalWatcher, Leases, Queue, RunningNote
from ..broker.keeper_process import KeeperProcess
from ..broker.lease_refresher import LeaseRefresher
from ..broker.retry import RedisRetry
from ..engine import Engine, EngineState
from .compat import broadcast
from .compat.bridge import CeleryBridge
from .compat.broker import connect_as_celery, reconnect
from .compat.context import WorkerContext
from .compat.hub import HubCalls
from .compat.ownership import Ownership
from .fast.events import Events
from .fast.fetch import QueueSource
from .fast.settle import CelerySink
from .fast.store import ResultStore
from .settings import Settings

logger = logging.getLogger(__name__)


class EngineParts:
    """Made once, when Celery's consumer is connected for the first time. On the hub's thread."""

    def __init__(self, consumer: Consumer, settings: Settings, retry: RedisRetry) -> None:
        """Make all parts; none of them does anything before `start`."""
        self._consumer = consumer
        self._claimed_queues: Sequence[Queue] = ()
        options = settings.worker
        channel = consumer.connection.default_channel
        client = connect_as_celery(channel, lease_s=options.lease_s, on_change=partial(reconnect, consumer))
        leases = self.leases = Leases(client, lease_s=options.lease_s)
        self._watcher = ArrivalWatcher(client)
        self.hub_calls = HubCalls(consumer.hub)
        state = EngineState(settings.tasks, options)
        context = WorkerContext(
            consumer=consumer,
            tasks=settings.tasks,
            options=options,
            leases=leases,
            hub=self.hub_calls,
            retry=retry,
            intake=state,
        )
        events, bridge = Events(consumer), CeleryBridge(context)
        self.bridge = bridge
        source = QueueSource(context, bridge, events, self._watcher, self._queues)
        expires_s = tuning.NOTE_LEASES * options.lease_s + tuning.NOTE_STEPS * state.longest_time_limit_s
        self._note = RunningNote(client, leases.tag_worker, key_prefix=channel.global_keyprefix, expires_s=expires_s)
        store = ResultStore(consumer.app, leases, client, state.user_code)
        self.engine = Engine(state, source, CelerySink(context, bridge, events, store, self._note))
        keeper = KeeperProcess(
            client, worker=leases.worker, lease_s=options.lease_s, limit_s=lambda: state.longest_time_limit_s
        )
        refresher = self._lease_refresher = LeaseRefresher(
            leases,
            self._queues,
            hung=lambda: state.hung,
            on_hung=source.give_back_rest,
            outage=retry.outage,
            keeper=keeper,
        )
        #: Checks whether the worker and its parts still know the same; Celery's timer calls it regularly.
        self.check = Ownership(context, bridge, lambda: refresher.dead_thread).check

    def start(self) -> None:
        """Load the models and begin to claim.

        Raises:
            BatcheryError: a model could not be loaded.
        """
        try:
            self.engine.load()
        except Exception as exc:
            # Not as it was raised: Celery takes a KeyError or an OSError for a lost connection, and tries again.
            raise BatcheryError(f"This worker cannot serve, because a model could not be loaded: {exc!r}") from exc
        _spare_the_garbage_collector()
        self._lease_refresher.start()
        self.engine.start()

    def leave(self) -> None:
        """Give back what is left, once the engine has drained, and close the connections."""
        self._lease_refresher.stop()
        self.hub_calls.run()
        try:
            self.leases.leave({job.reply.claim.tag for job in self.engine.suspects})
        except redis.RedisError as exc:
            logger.warning(
                "Jobs are not given back. They run elsewhere when the worker's lease has run out. Redis: %s", exc
            )
        self._watcher.close()
        self._note.close()

    def _queues(self) -> Sequence[Queue]:
        """Return the queues to claim from: while Celery reconnects, those of before."""
        if (consumer := self._consumer.task_consumer) is not None and (channel := consumer.channel) is not None:
            self._claimed_queues = _queues_of(consumer, channel, self._consumer.hostname)
        return self._claimed_queues


def _queues_of(consumer: kombu.Consumer, channel: Channel, hostname: str) -> Sequence[Queue]:
    return [
        Queue(name, channel.global_keyprefix, tuple(channel.priority_steps), channel.sep)
        for name in broadcast.claimed_names(tuple(consumer.queues), hostname)
    ]


def _spare_the_garbage_collector() -> None:
    """Give the garbage collector less to do, because it took a fifth of a no-op task's time."""
    gc.collect()
    gc.freeze()  # what exists once the models are loaded stays for ever
    if gc.get_threshold()[0] == 700:  # Python's own up to 3.13, so the app has not chosen another one
        gc.set_threshold(tuning.GC_THRESHOLD, *gc.get_threshold()[1:])
