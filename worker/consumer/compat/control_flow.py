"""What a task raises to tell Celery something other than a failure: Retry and Ignore.

Celery's tracer believes that a `Retry` was sent, and that an `Ignore` needs no answer. Where that is not so, the caller
would wait for ever.
"""

from datetime import datetime

from celery import Task, states
from celery.backends.base import Backend
from celery.exceptions import Ignore, Retry
from celery.worker.request import Request

from ....batchers import JobRejected, RetryRequested
from ..wire.request import FastRequest

_IGNORED = (
    "The task raised Ignore for this call and stored no state for it. To answer the call in another way, call "
    "self.update_state in preprocess or postprocess first."
)


def asks_for_retry(error: BaseException | None) -> bool:
    """Whether a retry is wanted that has not been sent."""
    return isinstance(error, RetryRequested) or (isinstance(error, Retry) and error.sig is None)


def retry(task: Task, error: RetryRequested | Retry) -> None:
    """Send the retry that `error` asks for, within a trace of the job.

    Raises:
        Exception: a `Retry` which was sent, or the failure of a job that may not be retried any more.
    """
    if isinstance(error, RetryRequested):
        task.retry(**{**error.options, "exc": error.options["exc"] and error.failure()})
    else:
        time = "eta" if isinstance(error.when, datetime) else "countdown"
        task.retry(exc=error.exc, **{time: error.when})


def refusal(backend: Backend, request: FastRequest | Request, error: BaseException | None) -> BaseException | None:
    """Return a job's `error`, or another one if nobody would answer the caller: the task has ignored the call."""
    if not isinstance(error, Ignore) or request.ignore_result:
        return error
    return JobRejected(_IGNORED) if backend.get_state(request.id) == states.PENDING else error
