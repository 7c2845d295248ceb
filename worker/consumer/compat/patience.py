"""What a plain task has done is stored and announced once all servers take it, and the task does not run again for it.

Celery's tracer makes a failure of the task of every error that it meets then, also if a server is full, a replica or
away. So the threads of Celery's pool get backends that try again, as the outcomes of batch tasks are told again.
"""

import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TypeVar

import redis
from billiard.einfo import ExceptionInfo
from celery import Celery, states
from celery.backends.base import Backend
from celery.worker.request import Request

from ....producer import private
from ... import tuning
from ...broker import Claim, Leases
from ...broker.retry import RedisRetry
from .postpone import PerhapsPostponed, Postponed, SteadyClient, is_steady, passes, steady, steady_client

T = TypeVar("T")

#: What Celery's pools hand to `Request.on_success`: whether the task failed, its result or error, its runtime.
_Answer = tuple[int, ExceptionInfo, float]


class Patience:
    """Tells what became of a plain task, on the thread of Celery's pool that ran it. Any thread."""

    def __init__(self, app: Celery, retry: RedisRetry, leases: Callable[[], Leases]) -> None:
        self._app = app
        self._retry = retry
        self._leases = leases
        #: What this thread runs (its message's claim) and tells (the backend that it tells).
        self._local = _Now()
        private.wrap_callbacks(app, self._publish)

    def traced(self, request: Request, trace: Callable[..., _Answer]) -> Callable[..., _Answer]:
        """Return `trace`, a call of Celery's tracer, with backends that try again.

        What it returns raises redis.ConnectionError if the task has to run again.
        """
        now, claim = self._local, self._leases().find(request.message.delivery_tag)

        def run(*args: object, **kwargs: object) -> _Answer:
            _make_patient(self._app.backend, self)
            now.runs, now.claim = True, claim
            try:
                answer = trace(*args, **kwargs)
                reason = private.unsent_retry(answer[1].exception) if answer[0] else None
                if passes(reason):
                    raise Postponed(repr(reason)) from reason
                return answer
            except Postponed as exc:
                raise redis.ConnectionError(f"the outcome of a task is postponed by {exc}") from exc
            finally:
                now.runs, now.claim = False, None

        return run

    def tells(self) -> bool:
        """Whether this thread runs a plain task."""
        return self._local.runs

    def tell(self, backend: Backend, error: BaseException | None, call: Callable[[Backend], T]) -> T:
        """Call `call` with a backend that does as `backend` does, until its server takes what it is told."""
        now = self._local
        if now.twin is not None:  # Celery tells the callback of a chord while it tells the chord's last part
            return call(now.twin)
        client = steady_client(backend, self._retry)
        now.twin = twin = steady(backend, SimpleNamespace(error=error), client)
        try:
            return self._repeat(partial(call, twin), client)
        finally:
            now.twin = None

    def _publish(self, send: Callable[..., object], *args: object, **kwargs: object) -> object:
        send = partial(send, *args, **kwargs)
        return self._repeat(send, None) if self.tells() and self._local.twin is None else send()

    def _repeat(self, action: Callable[[], T], client: SteadyClient | None) -> T:
        """Repeat an action while a server is away or refuses it for a time.

        Raises:
            Postponed: it was tried often enough, or the worker stops.
        """
        claim, tries = self._local.claim, 0

        def attempt() -> tuple[T]:
            nonlocal tries
            if tries:
                if claim is not None:
                    self._leases().check_server(claim.queue)  # while this fails no try counts
                if client is not None:
                    client.begin_again()
            tries += 1
            try:
                return (action(),)
            except (Postponed, Exception) as exc:
                if not (isinstance(exc, Postponed) or passes(exc)):
                    raise
                if tries < tuning.REPLAY_TRIES:
                    raise redis.ConnectionError(f"the outcome of a task is postponed by {exc}") from exc
                if isinstance(exc, PerhapsPostponed) and exc.__cause__ is not None:
                    raise exc.__cause__ from None  # the backend may never take this value
                raise Postponed(repr(exc)) from exc

        answer = self._retry.while_transient(attempt)
        if answer is None:
            raise Postponed("the stop of this worker")
        return answer[0]


class _Now(threading.local):
    runs = False
    claim: Claim | None = None
    twin: Backend | None = None


class _Patient:
    """What stands before the class of the backend that a thread of Celery's pool has."""

    patience: Patience

    def mark_as_done(self, *args: object, **kwargs: object) -> object:
        return self._tell("mark_as_done", None, *args, **kwargs)

    def mark_as_retry(self, *args: object, **kwargs: object) -> object:
        return self._tell("mark_as_retry", None, *args, **kwargs)

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: object, **kwargs: object) -> object:
        return self._tell("mark_as_failure", exc, task_id, exc, *args, **kwargs)

    def store_result(self, task_id: str, result: object, state: str, *args: object, **kwargs: object) -> object:
        if state == states.STARTED:
            return self._tell("store_result", None, task_id, result, state, *args, **kwargs)
        return super().store_result(task_id, result, state, *args, **kwargs)  # type: ignore[misc]

    def _tell(self, name: str, error: BaseException | None, *args: object, **kwargs: object) -> object:
        if is_steady(self) or not self.patience.tells():
            return getattr(super(), name)(*args, **kwargs)
        return self.patience.tell(self, error, lambda backend: getattr(backend, name)(*args, **kwargs))


def _make_patient(backend: Backend, patience: Patience) -> None:
    """Let a thread's own backend try again. One that all threads share stays as it is."""
    if not (isinstance(backend, _Patient) or backend.thread_safe):
        vars(backend).pop("batchery_steady", None)
        backend.__class__ = type(type(backend).__name__, (_Patient, type(backend)), {"patience": patience})
