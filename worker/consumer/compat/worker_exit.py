"""Ends the worker's process when it cannot go on, so that its supervisor starts another."""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import redis
from celery import signals
from celery.utils.functional import noop
from celery.worker import state

from ....configs import WorkerOptions
from ... import tuning
from ...broker.retry import Outage
from .context import WorkerContext
from .hub import HubCalls

logger = logging.getLogger(__name__)

T = TypeVar("T")


def end_worker(hub: HubCalls) -> None:
    """Let Celery shut the worker down, with EX_SOFTWARE (70) as the exit code. Any thread."""
    state.should_stop = os.EX_SOFTWARE  # Celery's loop looks at this on every turn
    hub.call(noop, soon=True)


def end_worker_unless_it_recovers(context: WorkerContext) -> None:
    """End the worker if its user code still hangs after the length of a lease, and let others have what hangs."""
    _later(context.options.lease_s, _end_if_hung, context)


def _end_if_hung(context: WorkerContext) -> None:
    hung_jobs = context.intake.hung_jobs
    if not hung_jobs:
        return
    try:  # the lease covers plain tasks that still run, so it is not left to run out
        context.leases.give_back([job.reply.claim for job in hung_jobs], died=True)
    except redis.RedisError as exc:
        logger.warning("The jobs that hang go back when the lease of this worker has run out. Redis: %s", exc)
    logger.critical("User code has hung for too long. This worker ends, so that its supervisor starts another.")
    end_worker(context.hub)
    # Celery's shutdown waits for plain tasks, and for whatever else may hang: this is its bound.
    _later(context.options.drain_timeout_s + tuning.EXIT_GRACE_S, os._exit, os.EX_SOFTWARE)


class StopLimit:
    """Ends the process if stopping it takes too long, because Celery waits without limit for a server that is silent.

    Plain tasks may run for as long as they want, as in Celery, but not while Redis cannot be used: nobody could hear of
    their results.
    """

    def __init__(self, options: WorkerOptions, outage: Outage, batch_tasks: Iterable[str]) -> None:
        """Begin to count when Celery gets a signal to stop, or at `start`."""
        self._seconds = options.drain_timeout_s + tuning.STOP_GRACE_S
        self._outage = outage
        self._batch_tasks = frozenset(batch_tasks)
        self._started = threading.Lock()
        self._stopped = threading.Event()
        signals.worker_shutting_down.connect(self.start)

    def start(self, **_: object) -> None:
        """Begin to count, unless that has begun. Any thread, and a signal's handler."""
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._run, name="batchery-stop", daemon=True).start()

    def cancel(self) -> None:
        """Let the process end by itself, because it has stopped in time."""
        self._stopped.set()

    def _run(self) -> None:
        seconds = min(self._seconds, threading.TIMEOUT_MAX)
        while not self._stopped.wait(seconds):
            if self._outage.seconds or not self._plain_tasks_run():
                logger.critical("The worker did not stop in %.0f s, so it ends at once. Leases run out.", self._seconds)
                os._exit(os.EX_SOFTWARE)
            seconds = 1.0

    def _plain_tasks_run(self) -> bool:
        try:
            return any(request.task.name not in self._batch_tasks for request in tuple(state.active_requests))
        except RuntimeError:  # the hub's thread changed the set meanwhile, so they do
            return True


def _later(seconds: float, function: Callable[[T], object], argument: T) -> None:
    timer = threading.Timer(seconds, function, [argument])
    timer.daemon = True
    timer.start()
