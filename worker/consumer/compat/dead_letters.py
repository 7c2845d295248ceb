"""Which messages are given up before Celery has them in hand, and how they are kept with the dead letters."""

import logging
import math
from collections.abc import Container

import redis
from celery.exceptions import WorkerLostError
from kombu import Message

from ....batchers import Job
from ....configs import TaskOptions
from ...broker import Claim, DeadLetter, LetterLimits
from ..wire.decode import lost_of
from ..wire.kombu_message import addressee
from .context import WorkerContext

logger = logging.getLogger(__name__)

#: Deliveries of a plain task's message, at most: as many as a batch task's by default.
_MAX_DELIVERIES = TaskOptions().max_deliveries


class DeadLetterKeeper:
    """Keeps claimed messages, as many as the worker's options allow. Their leases stay. Any thread."""

    def __init__(self, context: WorkerContext) -> None:
        self._leases = context.leases
        self._worker = context.consumer.hostname
        options = context.options
        self._limits = LetterLimits(
            options.dead_letters, options.dead_letters_max_bytes, math.ceil(options.dead_letters_max_age_s)
        )

    def keep(self, claim: Claim, reason: str, job: Job | None = None) -> None:
        """Keep a message before its failure is stored, so that it may be kept twice, but is never lost.

        `reason` is shown to anybody, so it must not quote the message.

        Raises:
            redis.RedisError: it could not be kept.
        """
        if not self._limits.letters:
            return
        task, task_id = addressee(claim.message)
        letter = DeadLetter(id=task_id or claim.tag, task=task, reason=reason, worker=self._worker)
        if job is not None:
            letter.lost, letter.deaths = job.lost, job.deaths
        self._leases.bury(claim, letter, self._limits)

    def keep_or_leave(self, claim: Claim, reason: str) -> bool:
        """Keep a message; if that fails, let it come back when its lease is over, and return False."""
        try:
            self.keep(claim, reason)
            return True
        except redis.RedisError:
            logger.exception("A dead letter could not be kept. Its message returns when its lease is over.")
            self._leases.forget([claim])
            return False


def why_given_up(message: Message, served: Container[str]) -> WorkerLostError | None:
    """Return why a message is not delivered any more; None if it is. Of tasks that are `served` the engine decides."""
    lost, _, _ = lost_of((message.delivery_info or {}).get("batchery_lost"))
    if lost < _MAX_DELIVERIES or (message.headers or {}).get("task") in served:
        return None
    return WorkerLostError(
        f"This call was delivered {lost} times, and each time its worker died or lost its lease. So it does not run "
        "again."
    )
