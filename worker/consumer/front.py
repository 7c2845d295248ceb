"""The engine's front at a Celery worker: claims from Redis, answers through Celery."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis
from celery.utils.functional import maybe_list
from celery.worker import state

from ...batchers import Batch, Job, Outcome
from ..broker import ArrivalWatcher, Leases, Queue
from ..broker.retry import RedisRetry
from ..engine import Room
from .compat import hub as on_hub
from .compat.bridge import CeleryBridge
from .fast.events import Events
from .fast.fetch import Claiming
from .fast.result_store import ResultStore
from .fast.settle import Settling
from .wire.request import CurrentRequest, LightRequest, full_request

if TYPE_CHECKING:
    from ..engine import Engine

logger = logging.getLogger(__name__)


class BrokerFront:
    """See `engine.Front` for what each method is called for, and by which thread."""

    def __init__(
        self,
        consumer: Any,
        leases: Leases,
        doorbell: ArrivalWatcher,
        store: ResultStore,
        hub: on_hub.HubCalls,
        *,
        queues: Callable[[], Sequence[Queue]],
        max_bytes: tuple[int, int],
    ) -> None:
        """Serve `consumer`'s batch tasks; `max_bytes` are those of one claim, and of all that is held."""
        self._tasks: dict[str, Any] = consumer.batch_tasks
        self._leases = leases
        self._doorbell = doorbell
        self._hub = hub
        self._events = Events(consumer)
        self._retry = RedisRetry()
        claim_max, held_max = max_bytes
        #: What Celery's own machinery has in hand.
        self.unusual = CeleryBridge(consumer, leases, hub, self._retry, held_max_bytes=held_max)
        parts = hub, self._events, self.unusual, self._retry
        self._claiming = Claiming(consumer, leases, doorbell, *parts, queues=queues, max_bytes=claim_max)
        self._settling = Settling(consumer, leases, store, *parts)

    def attach(self, engine: "Engine") -> None:
        """Work for `engine`; this comes before all else."""
        self._engine = self.unusual.engine = self._claiming.engine = engine

    def claim(self, rooms: Mapping[str, Room]) -> list[Job]:
        """See `Front.claim`."""
        return self._claiming.claim(rooms)

    def interrupt(self) -> None:
        """See `Front.interrupt`."""
        self._retry.stop()
        self._doorbell.interrupted = True
        self._engine.freed.set()
        self._hub.wake()

    @contextmanager
    def current(self, job: Job) -> Iterator[None]:
        """See `Front.current`: `self.request` and `self.retry` work in `preprocess`."""
        stack = self._tasks[job.task].request_stack
        stack.push(CurrentRequest(job.reply))
        try:
            yield
        finally:
            stack.pop()

    def drop_cancelled(self, jobs: list[Job]) -> list[Job]:
        """See `Front.drop_cancelled`."""
        now, revoked = time.monotonic(), state.revoked
        wanted = []
        for job in jobs:
            expired = job.deadline is not None and job.deadline <= now
            if expired or (revoked and job.id in revoked) or _revoked_by_stamp(job.reply):
                self._hub.call(self._withdraw, job)
            elif self._leases.holds(job.reply.claim):
                wanted.append(job)
            else:
                self._hub.call(on_hub.gone, [job.reply])
        return wanted

    def _withdraw(self, job: Job) -> None:
        """Let Celery announce and store that a job was revoked or has expired. On the hub."""
        try:
            revoked = full_request(job.reply).revoked()
        except Exception as exc:
            logger.exception("Celery could not revoke %s.", job.reply)
            self.unusual.fail(job.id, job.reply.claim, exc)
            revoked = True
        if revoked:
            on_hub.gone([job.reply])
        else:  # by Celery's clock it has not expired yet
            job.deadline = None
            self._engine.submit([job])

    def started(self, batch: Batch) -> None:
        """See `Front.started`."""
        self._hub.call(self._mark_started, [job.reply for job in batch.jobs], time.time(), time.monotonic())

    def _mark_started(self, requests: Sequence[Any], now: float, monotonic_now: float) -> None:
        light = [request for request in requests if type(request) is LightRequest]
        for request in light:
            request.time_start = now
        on_hub.accepted(light)
        self._events.started(light)
        if len(light) < len(requests):
            for request in requests:
                if type(request) is not LightRequest:
                    request.on_accepted(os.getpid(), monotonic_now)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Front.settle`."""
        self._settling.settle(outcomes)

    def give_back(self, jobs: Sequence[Job]) -> None:
        """See `Front.give_back`."""
        self._retry.once(lambda: self._leases.give_back(job.reply.claim for job in jobs))
        self._hub.call(on_hub.gone, [job.reply for job in jobs])

    def release_waiting(self) -> None:
        """Give back all but what runs: the device hangs, other workers shall have the rest. Lease thread."""
        running = {job.reply.claim.tag for job in self._engine.running}
        self._leases.give_back(claim for claim in self._leases.held() if claim.tag not in running)

    def broken(self, error: Exception) -> None:  # noqa: ARG002 - the engine has logged it
        """See `Front.broken`."""
        self.interrupt()
        # Celery's loop looks at this on every turn, and shuts the worker down with it as the exit code.
        state.should_stop = os.EX_SOFTWARE
        self._hub.call(lambda: None, soon=True)

    def close(self) -> None:
        """Acknowledge what is left to acknowledge, give back the rest, and leave. The engine has stopped."""
        self._hub.run()
        try:
            self._settling.acknowledge_rest()
            self._leases.leave()
        except redis.RedisError as exc:
            logger.warning("Leases could not be given back, they run out by themselves: %s", exc)
        self._doorbell.close()


def _revoked_by_stamp(request: Any) -> bool:
    """Whether one of a request's stamps was revoked, as Celery's `Request.revoked` finds it."""
    if not state.revoked_stamps or isinstance(request, LightRequest):  # what is stamped is never light
        return False
    headers = request.message.headers
    names, stamps = headers.get("stamped_headers"), headers.get("stamps")
    if not isinstance(names, list) or not isinstance(stamps, dict):
        return False
    revoked = ((name, maybe_list(values)) for name, values in state.revoked_stamps.items() if name in names)
    return any(value in values for name, values in revoked for value in maybe_list(stamps.get(name)) or ())
