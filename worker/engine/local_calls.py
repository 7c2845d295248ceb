"""The calls of a `Host`: a bounded queue, from which the engine takes jobs, and futures, which get their outcomes."""

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Literal

from ...batchers import Batch, BatchFailed, Job, JobRejected, Outcome, RetryRequested
from .ports import Capacity

_NOT_STARTED = "The host takes no calls before it is started: call start(), or use it in a `with` statement."
_STOPPED = "The host is stopped: it takes no more calls."
NOT_RUN = "The host stopped before this call was answered."


class LocalCalls:
    """The engine's source and its sink in one: jobs whose reply addresses are futures."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queue: deque[Job] = deque()
        self._unanswered: dict[int, Job] = {}
        self._ids = itertools.count()
        #: Why calls are refused; None while they are taken.
        self._refusal: str | None = _NOT_STARTED
        self._interrupted = False
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._freed = threading.Condition(self._lock)
        self._answered = threading.Condition(self._lock)

    # -- The callers' side -------------------------------------------------------------------------------------------

    def open(self) -> None:
        with self._lock:
            if not self._interrupted:
                self._refusal = None

    def put(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        when_full: Literal["wait", "reject", "join"],
    ) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._lock:
            if when_full == "wait":
                self._freed.wait_for(lambda: self._refusal or len(self._queue) < self._most)
            if self._refusal:
                raise JobRejected(self._refusal)
            if when_full == "reject" and len(self._queue) >= self._most:
                raise JobRejected(f"The host's queue is full: {len(self._queue)} calls wait. Try again later.")
            seq = next(self._ids)
            job = Job(str(seq), task, args, kwargs, future, time.monotonic(), seq)
            self._queue.append(job)
            self._unanswered[seq] = job
            self._filled.notify()
        return future

    def close(self, patience: float) -> bool:
        """Take no more calls; wait until all that were taken are answered, or none was for `patience` seconds.

        Returns whether all are answered.
        """
        with self._lock:
            self._refuse(_STOPPED)
            while self._unanswered and self._answered.wait(patience):
                pass
            return not self._unanswered

    def fail_rest(self, reason: str) -> None:
        with self._lock:
            jobs = list(self._unanswered.values())
            self._queue.clear()
        self._answer([Outcome(job, error=BatchFailed(reason)) for job in jobs])

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        self._freed.notify_all()

    # -- The engine's side -------------------------------------------------------------------------------------------

    def claim(self, capacity: Mapping[str, Capacity]) -> list[Job]:
        most = max(free.jobs for free in capacity.values())  # a host has one task
        with self._lock:
            self._filled.wait_for(lambda: self._queue or self._interrupted)
            if self._interrupted:
                return []
            jobs = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
            self._freed.notify(len(jobs))
        return jobs

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            self._filled.notify_all()

    def current(self, job: Job) -> contextlib.AbstractContextManager[object]:  # noqa: ARG002 - the port's signature
        return contextlib.nullcontext()

    def drop_cancelled(self, jobs: list[Job]) -> list[Job]:
        wanted = [job for job in jobs if not job.reply.done()]
        if len(wanted) < len(jobs):
            kept = set(map(id, wanted))
            gone = [job for job in jobs if id(job) not in kept]  # cancelled, or the host gave up on them
            for job in gone:
                _notify_if_cancelled(job.reply)
            self._forget(gone)
        return wanted

    def admits(self, batch: Batch) -> bool:  # noqa: ARG002 - the port's signature
        return True

    def working(self, jobs: Sequence[Job], *, begins: bool) -> None:
        pass

    def started(self, batch: Batch) -> None:
        for job in batch.jobs:
            if not job.reply.done():
                job.reply.set_running_or_notify_cancel()

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self._answer(outcomes)

    def give_back(self, jobs: Sequence[Job]) -> None:
        self._answer([Outcome(job, error=BatchFailed(NOT_RUN)) for job in jobs])

    def broken(self, error: Exception) -> None:
        reason = f"The host's engine died: {error!r}"
        self.interrupt()
        with self._lock:
            self._refuse(reason)
        self.fail_rest(reason)

    def _answer(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            future = outcome.job.reply
            try:
                if outcome.error is None:
                    future.set_result(outcome.value)
                else:
                    future.set_exception(_as_exception(outcome.error))
            except InvalidStateError:  # cancelled meanwhile, by a caller that waits no more
                _notify_if_cancelled(future)
        self._forget([outcome.job for outcome in outcomes])

    def _forget(self, jobs: Iterable[Job]) -> None:
        with self._lock:
            for job in jobs:
                self._unanswered.pop(job.seq, None)
            self._answered.notify_all()


def _notify_if_cancelled(future: "Future[Any]") -> None:
    """Tell those who wait for a cancelled call, in `concurrent.futures.wait` for example."""
    if future.cancelled():
        with contextlib.suppress(RuntimeError):  # they have been told
            future.set_running_or_notify_cancel()


def _as_exception(error: BaseException) -> Exception:
    """Return what may be raised in the caller: a SystemExit of the model's must not end the caller's thread.

    A StopIteration cannot be raised in a coroutine: asyncio would drop it, and the caller would wait for ever. A host
    retries nothing.
    """
    if isinstance(error, RetryRequested):
        error = error.failure()
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = BatchFailed(f"The call raised {error!r}.")
    failure.__cause__ = error
    return failure
