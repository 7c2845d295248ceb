"""Settles outcomes: successes of fast calls in bulk, everything else through Celery's own tracer."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter

import redis
from celery import signals
from celery.app.trace import task_has_custom
from celery.utils.functional import maybe_list
from celery.worker import state
from celery.worker.request import Request

from ....batchers import Batch, Job, Outcome
from ....producer import private
from ...broker import RunningNote, Settled
from ...broker.retry import is_transient
from ..compat import worker_state
from ..compat.bridge import CeleryBridge
from ..compat.context import WorkerContext
from ..compat.replay import OutcomeReplay
from ..compat.worker_exit import end_worker
from ..wire.request import CurrentRequest, FastRequest
from .events import Events
from .store import ResultStore

logger = logging.getLogger(__name__)

#: Celery's tracer sends these signals, and calls these methods of a task, around each success.
_SIGNALS = (signals.task_success, signals.task_prerun, signals.task_postrun)
_HOOKS = ("before_start", "on_success", "after_return")


_redelivered = attrgetter("redelivered")


class CelerySink:
    """The engine's sink of results: answers callers as Celery does."""

    def __init__(
        self, context: WorkerContext, bridge: CeleryBridge, events: Events, store: ResultStore, note: RunningNote
    ) -> None:
        self._tasks = context.tasks
        self._leases = context.leases
        self._hub = context.hub
        self._retry = context.retry
        self._bridge = bridge
        self._events = events
        self._store = store
        self._note = note
        self._device_thread = 0
        self._replay = OutcomeReplay(context, bridge, store.backend_of)
        self._hooked = {
            name for name, task in self._tasks.items() if any(task_has_custom(task, hook) for hook in _HOOKS)
        }

    @contextmanager
    def current(self, job: Job) -> Iterator[None]:
        """Return a context in which `self.request` and `self.retry` of the job's task work."""
        stack = self._tasks[job.task].request_stack
        stack.push(CurrentRequest(job.reply))
        try:
            yield
        finally:
            stack.pop()

    def drop_cancelled(self, jobs: list[Job]) -> list[Job]:
        """Return the jobs that are wanted and still ours; Celery announces revoked and expired ones."""
        now, revoked = time.monotonic(), state.revoked
        wanted = []
        for job in jobs:
            expired = job.deadline is not None and job.deadline <= now
            if expired or (revoked and job.id in revoked) or _revoked_by_stamp(job.reply):
                self._hub.call(self._bridge.withdraw, job)
            elif self._leases.holds(job.reply.claim):
                wanted.append(job)
            else:
                self._hub.call(worker_state.forget, [job.reply])
        return wanted

    def admits(self, batch: Batch) -> bool:
        """Return whether a suspect may run; not while the server is away, because its death could not be noted."""
        try:
            return self._leases.scripts.may_run_suspect(batch.jobs[0].reply.claim)
        except redis.RedisError as exc:
            logger.warning("A job that may end this worker could not be announced: %s", exc)
            return not is_transient(exc)  # else it would never run

    def working(self, jobs: Sequence[Job], *, begins: bool) -> None:
        """Note at the server what user code works on. The device thread's work is noted when its batch starts.

        That note stays until the next batch starts, because an error may end the engine after the batch has failed.
        """
        if threading.get_ident() != self._device_thread:
            self._note.write([job.reply.claim.tag for job in jobs] if begins else [])

    def started(self, batch: Batch) -> None:
        """Note at the server which jobs run, in case they end the worker; let `inspect` and events show them.

        Jobs of a quick batch are noted only if one of them was redelivered, because a worker has died then.
        """
        self._device_thread = threading.get_ident()
        requests = [job.reply for job in batch.jobs]
        if not batch.quick or any(map(_redelivered, batch.jobs)):
            self._note.write([request.claim.tag for request in requests])
        self._hub.call(self._started, requests, time.time(), time.monotonic())

    def _started(self, requests: Sequence[FastRequest | Request], now: float, monotonic_now: float) -> None:
        fast: list[FastRequest] = []
        for request in requests:
            if isinstance(request, FastRequest):
                request.time_start = now
                fast.append(request)
            else:
                request.on_accepted(os.getpid(), monotonic_now)
        worker_state.accepted(fast)
        self._events.started(fast)

    def broken(self, error: Exception) -> None:  # noqa: ARG002 - the engine has logged it
        """Shut the worker down, because its engine died."""
        end_worker(self._hub)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Store outcomes, announce them, and acknowledge their messages."""
        all_bridged = any(map(private.receivers, _SIGNALS))
        fast: list[Outcome] = []
        bridged: list[Outcome] = []
        for outcome in outcomes:
            (bridged if all_bridged or not self._is_fast(outcome) else fast).append(outcome)
        if fast:
            bridged += self._settle_fast(fast)
        for outcome in bridged:
            self._store.refuse_too_large(outcome)
            self._replay.tell(outcome)

    def _is_fast(self, outcome: Outcome) -> bool:
        """Whether nothing has to be done but to store and announce a success."""
        if outcome.error is not None or outcome.job.task in self._hooked:
            return False
        return type(outcome.job.reply) is FastRequest

    def _settle_fast(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """Settle in bulk; return the outcomes that Celery has to store: errors, and what completes a chord.

        Raises permanent errors, so that the engine settles the halves by themselves.
        """
        answers = self._retry.while_transient(lambda: self._store.settle(outcomes))
        if answers is None:  # the worker stops
            # These run again elsewhere: the worker gives them back when it leaves.
            self._leases.let_go(outcome.job.reply.claim for outcome in outcomes if outcome.error is None)
            answers = [Settled.LOST if outcome.error is None else Settled.NEEDS_CELERY for outcome in outcomes]
        pairs = list(zip(outcomes, answers, strict=True))
        settled = [
            (outcome, answer is not Settled.LOST) for outcome, answer in pairs if answer is not Settled.NEEDS_CELERY
        ]
        self._hub.call(self._settled, settled)
        return [outcome for outcome, answer in pairs if answer is Settled.NEEDS_CELERY]

    def _settled(self, pairs: Sequence[tuple[Outcome, bool]]) -> None:
        """Announce the outcomes whose second is true, and forget the requests of all."""
        worker_state.forget([outcome.job.reply for outcome, _ in pairs])
        self._events.succeeded([outcome for outcome, is_ours in pairs if is_ours])


def _revoked_by_stamp(request: FastRequest | Request) -> bool:
    """Whether one of a request's stamps was revoked, as Celery's `Request.revoked` finds it."""
    if not state.revoked_stamps or isinstance(request, FastRequest):  # a fast call has no stamps
        return False
    headers = request.message.headers
    names, stamps = headers.get("stamped_headers"), headers.get("stamps")
    if not isinstance(names, list) or not isinstance(stamps, dict):
        return False
    revoked = ((name, maybe_list(values)) for name, values in state.revoked_stamps.items() if name in names)
    return any(value in values for name, values in revoked for value in maybe_list(stamps.get(name)) or ())
