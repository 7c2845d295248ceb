"""Ends the worker's process when it cannot go on, so that its supervisor starts another."""

import logging
import os
import threading
from collections.abc import Callable
from typing import TypeVar

import redis
from celery.utils.functional import noop
from celery.worker import state

from ... import tuning
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


def _later(seconds: float, function: Callable[[T], object], argument: T) -> None:
    timer = threading.Timer(seconds, function, [argument])
    timer.daemon = True
    timer.start()
