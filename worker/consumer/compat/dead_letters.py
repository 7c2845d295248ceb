"""Keeps messages of jobs that are given up, or that Celery's own code cannot take, with the dead letters."""

import logging
import math
from collections.abc import Callable, Container

import redis
from celery.exceptions import WorkerLostError
from kombu import Message

from ....batchers import Job
from ....configs import TaskOptions
from ...broker import Claim, DeadLetter, LetterLimits
from ...broker.retry import is_transient
from ..wire.decode import lost_of
from ..wire.kombu_message import addressee
from .context import WorkerContext

logger = logging.getLogger(__name__)

#: Deliveries of a plain task's message, at most: as many as a batch task's by default.
_MAX_DELIVERIES = TaskOptions().max_deliveries


class DeadLetterKeeper:
    """Keeps claimed messages before their failure is stored by `fail`, or they are just acknowledged. Any thread."""

    def __init__(
        self,
        context: WorkerContext,
        acknowledge: Callable[[str], None],
        fail: Callable[[str, Claim, Exception], None],
    ) -> None:
        self._consumer = context.consumer
        self._leases = context.leases
        self._retry = context.retry
        self._served = context.tasks.keys()
        self._acknowledge = acknowledge
        self._fail = fail
        options = context.options
        self._limits = LetterLimits(
            options.dead_letters, options.dead_letters_max_bytes, math.ceil(options.dead_letters_max_age_s)
        )

    def keep(self, claim: Claim, reason: str, job: Job | None = None, *, patient: bool = False) -> bool:
        """Keep a message before its failure is stored, so that it may be kept twice, but is never lost.

        `reason` is shown to anybody, so it must not quote the message. Return False if the failure must not be stored:
        the message is no longer ours, or it could not be kept, and comes back when its lease is over. That is tried
        again until the worker stops if the caller is `patient`.
        """
        if not self._limits.letters:
            return True
        task, task_id, _ = addressee(claim.message)
        letter = DeadLetter(id=task_id or claim.tag, task=task, reason=reason, worker=self._consumer.hostname)
        if job is not None:
            letter.lost, letter.deaths = job.lost, job.deaths

        def bury() -> bool:
            return self._leases.scripts.bury(claim, letter, self._limits)

        try:
            kept = self._retry.while_transient(bury) if patient else bury()
        except redis.RedisError as exc:
            kept = not is_transient(exc)  # else it would fail each time, and its caller would wait for ever
            logger.exception("The message of %s could not be kept with the dead letters.", letter.id)
        if not kept:
            self._leases.let_go([claim])
        return bool(kept)

    def keep_unknown(self, tag: str) -> bool:
        """Keep a message whose task the app does not have, as `keep` does."""
        claim = self._leases.find(tag)
        return claim is not None and self.keep(claim, "The worker's app has no such task.")

    def refuse(self, claim: Claim, error: Exception) -> None:
        """Drop a message that Celery can make nothing of, and store the reason for the caller that it names."""
        # Not the error's text, because it may quote the message.
        if not self.keep(claim, f"The message was refused ({type(error).__name__})."):
            return
        task_id = addressee(claim.message).id
        if task_id is None:
            self._acknowledge(claim.tag)
        else:
            self._fail(task_id, claim, error)

    def give_up(self, claim: Claim, message: Message) -> bool:
        """Fail a message that was delivered too often; return whether it is not to be handed to Celery."""
        error = why_given_up(message, self._served)
        if error is None:
            return False
        if self.keep(claim, f"{error}"):
            self._fail(f"{message.headers['id']}", claim, error)
        return True


def why_given_up(message: Message, served: Container[str]) -> WorkerLostError | None:
    """Return why a message is not delivered any more; None if it is. Of tasks that are `served` the engine decides.

    A call with an ETA is delivered on, because it may wait through any number of deaths that it has not caused.
    """
    lost, _, _ = lost_of((message.delivery_info or {}).get("batchery_lost"))
    headers = message.headers or {}
    if lost < _MAX_DELIVERIES or headers.get("task") in served or headers.get("eta"):
        return None
    return WorkerLostError(
        f"This call was delivered {lost} times, and each time its worker died or lost its lease. So it does not run "
        "again."
    )
