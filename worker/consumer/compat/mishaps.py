"""What is done for a job when Celery's own code raises: it is answered, or its message goes back."""

import logging

from celery import states
from celery.backends.base import Backend
from celery.exceptions import ChordError, Reject, WorkerLostError
from celery.worker.request import Request

from ....batchers import without_text
from ...broker import Claim
from ..wire.request import FastRequest, context_of, full_request
from . import worker_state
from .context import WorkerContext
from .dead_letters import DeadLetterKeeper
from .postpone import answered, may_pass, passes

logger = logging.getLogger(__name__)


class Mishaps:
    """Answers jobs that Celery cannot, or lets them run again. Any thread."""

    def __init__(self, context: WorkerContext) -> None:
        self._consumer = context.consumer
        self._leases = context.leases
        self._hub = context.hub
        self.dead_letters = DeadLetterKeeper(context, self.acknowledge, self.fail)

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message, if it is still ours."""
        raise NotImplementedError

    def give_back(self, tag: str) -> None:
        """Give a message back, if it is still ours."""
        raise NotImplementedError

    def refuse(self, tag: str, error: Exception) -> None:
        """Drop a message that Celery can make nothing of, and store the reason for the caller that it names."""
        if (claim := self._leases.find(tag)) is not None:
            self.dead_letters.refuse(claim, error)

    def give_up(self, request: FastRequest | Request, error: BaseException) -> None:
        """Answer a job for which Celery's own code raised, or give it back if a server was away. Any thread."""
        self._hub.call(worker_state.forget, [request])
        claim = request.claim if isinstance(request, FastRequest) else self._leases.find(request.message.delivery_tag)
        if (isinstance(error, Reject) and error.requeue) or passes(error, request.task.backend):
            told = without_text(error)
            logger.warning("%s[%s] goes back, because a server was away: %s", request.name, request.id, told)
            if claim is not None:
                self.give_back(claim.tag)
        else:
            self.fail(request.id, claim, error, request)

    def fail(
        self, task_id: str, claim: Claim | None, error: BaseException, request: FastRequest | Request | None = None
    ) -> None:
        """Fail a job that Celery's own code cannot take, if it has no answer. Otherwise it would come back for ever."""
        backend = self._consumer.app.backend if request is None else request.task.backend
        try:
            if request is None:
                backend.mark_as_failure(task_id, error)
            elif not answered(backend, task_id):
                _mark_as_failure(backend, request, error, store_result=full_request(request).store_errors)
            elif full_request(request).chord:  # which may not have counted it
                backend.on_chord_part_return(context_of(request), states.FAILURE, error)
        except Exception as exc:
            if may_pass(exc, backend):
                told = without_text(exc)
                logger.error("The failure of %s could not be stored. It runs again after a lease: %s", task_id, told)
                self._leases.let_go([claim] if claim else [])
                return
            told = without_text(exc)
            logger.error("No result can ever be stored for %r, so its message is dropped: %s", task_id, told)
            if request is not None:
                self._tell_others(backend, request, error)
        if claim is not None:
            self.acknowledge(claim.tag)

    def _tell_others(self, backend: Backend, request: FastRequest | Request, error: BaseException) -> None:
        """Tell whoever else waits for a job whose own failure cannot be stored: errbacks, a chain, a chord."""
        try:
            chord = full_request(request).chord
            try:
                _mark_as_failure(backend, request, error, store_result=False)
            except Exception as exc:
                if not chord:
                    raise
                callback = self._consumer.app.signature(chord)
                if callback.id and not answered(backend, callback.id):
                    backend.chord_error_from_stack(callback, ChordError(f"A part could not be counted: {exc!r}"))
        except Exception as exc:
            logger.error("Those who wait for %s could not be told of its failure: %s", request.id, without_text(exc))


def _mark_as_failure(
    backend: Backend, request: FastRequest | Request, error: BaseException, *, store_result: bool
) -> None:
    context = context_of(request)
    if not isinstance(error, Exception):
        error = WorkerLostError(repr(error))  # as Celery's pools call it
    backend.mark_as_failure(request.id, error, request=context, store_result=store_result)
