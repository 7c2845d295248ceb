"""Host: the engine inside this process, with no broker."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from types import TracebackType
from typing import Any, Literal, Self

from ...batchers import Batch, BatcheryError, BatchFailed, Job, JobRejected, Outcome
from ...configs import WorkerOptions
from .engine import Engine
from .front import Room
from .model import Model

_NOT_STARTED = "The host takes no calls before it is started: call start(), or use it in a `with` statement."
_STOPPED = "The host is stopped: it takes no more calls."
_NOT_RUN = "The host stopped before this call was answered."


class Host:
    """Serves one task to the threads and coroutines of this process, in the same batches as a worker would.

        with Host(embed) as host:
            vector = host("a text")                  # from any thread; waits
            future = host.submit("another")          # a concurrent.futures.Future
            vectors = host.map(["many", "texts"])    # in order
            vector = await host.acall("a text")      # from a coroutine

    At most `max_queue` calls of `submit` and `map` may wait in line; then their callers wait too, or get `JobRejected`
    if they asked not to. A host serves once: after `stop`, make a new one.
    """

    def __init__(self, task: Model, *, max_queue: int | None = None, options: WorkerOptions | None = None) -> None:
        """Host `task`; `max_queue` defaults to twice what the planner looks ahead."""
        if isinstance(task, type):
            raise TypeError(f"Host needs a task, not its class: Host({task.__name__}()).")
        if max_queue is None:
            max_queue = 2 * task.options.max_waiting
        if max_queue < 1:
            raise ValueError(f"max_queue = {max_queue!r} is not possible: it must be a whole number from 1 up.")
        self._task = task
        self._options = options or WorkerOptions()
        self._front = _LocalFront(max_queue)
        self._engine = Engine({task.name: task}, self._front, self._options)
        self._used = False

    def start(self) -> Self:
        """Load the model and start serving.

        Raises:
            BatcheryError: the host was started or stopped before.
            Exception: whatever the task's `load` raises; the host may be started again then.
        """
        if self._used:
            raise BatcheryError("This host was started or stopped before, and a host serves once: make a new one.")
        self._engine.load()
        self._used = True
        self._engine.start()
        self._front.open()
        return self

    def stop(self) -> None:
        """Finish every call that was taken, then stop. Later calls are rejected.

        If no call is answered for `drain_timeout_s`, those that are left fail with `BatchFailed`.
        """
        self._used = True
        answered = self._front.close(self._options.drain_timeout_s)
        self._engine.drain(self._options.drain_timeout_s if answered else 0.0)
        self._front.fail_rest(_NOT_RUN)

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    def submit(self, *args: Any, block: bool = True, **kwargs: Any) -> "Future[Any]":
        """Send one call; return its future. Cancelling the future withdraws a call that does not run yet.

        The future's callbacks run on the thread that settles all calls: they must not wait for this host.

        Raises:
            JobRejected: the host does not run, or its queue is full and `block` is false.
        """
        return self._front.put(self._task.name, args, kwargs, when_full="wait" if block else "reject")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send one call and wait for its result; raises as `submit`, and whatever the call itself raises."""
        return self.submit(*args, **kwargs).result()

    def map(self, *columns: Iterable[Any]) -> list[Any]:
        """Send a call for each item and wait for all; return the results in order.

        Where the task takes several arguments, give as many iterables. The first call that fails raises, and the calls
        that do not run yet are withdrawn.
        """
        futures: list[Future[Any]] = []
        try:
            futures += [self.submit(*args) for args in zip(*columns, strict=True)]
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    async def acall(self, *args: Any, block: bool = True, **kwargs: Any) -> Any:
        """Send one call and await its result; cancelling the coroutine withdraws a call that does not run yet.

        Unless `block` is false the call joins the line however long it is: a coroutine waits for its own call anyway.
        """
        when_full: Literal["join", "reject"] = "join" if block else "reject"
        return await asyncio.wrap_future(self._front.put(self._task.name, args, kwargs, when_full=when_full))

    def stats(self) -> dict[str, int | float]:
        """Return what was done so far, as `Engine.stats`."""
        return self._engine.stats()


class _LocalFront:
    """A bounded queue of calls whose reply addresses are futures."""

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

    # -- The engine's side: see Front --------------------------------------------------------------------------------

    def claim(self, rooms: Mapping[str, Room]) -> list[Job]:
        room = max(room.jobs for room in rooms.values())  # a host has one task
        with self._lock:
            self._filled.wait_for(lambda: self._queue or self._interrupted)
            if self._interrupted:
                return []
            jobs = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
            self._freed.notify(len(jobs))
        return jobs

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            self._filled.notify_all()

    def current(self, job: Job) -> contextlib.AbstractContextManager[object]:  # noqa: ARG002 - as Front's
        return contextlib.nullcontext()

    def drop_cancelled(self, jobs: list[Job]) -> list[Job]:
        wanted = [job for job in jobs if _begin(job.reply)]
        if len(wanted) < len(jobs):
            keep = set(map(id, wanted))
            self._forget([job for job in jobs if id(job) not in keep])
        return wanted

    def started(self, batch: Batch) -> None:
        """Nothing to note: futures were marked as running by `drop_cancelled`."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self._answer(outcomes)

    def give_back(self, jobs: Sequence[Job]) -> None:
        self._answer([Outcome(job, error=BatchFailed(_NOT_RUN)) for job in jobs])

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
                _begin(future)
        self._forget([outcome.job for outcome in outcomes])

    def _forget(self, jobs: Iterable[Job]) -> None:
        with self._lock:
            for job in jobs:
                self._unanswered.pop(job.seq, None)
            self._answered.notify_all()


def _begin(future: "Future[Any]") -> bool:
    """Mark a call as running, or tell those who wait that it was cancelled; return whether anybody wants it."""
    if future.done() and not future.cancelled():  # the host gave up on it
        return False
    try:
        return future.set_running_or_notify_cancel()
    except RuntimeError:  # they have been told, or it was answered just now
        return False


def _as_exception(error: BaseException) -> Exception:
    """Return what may be raised in the caller: a SystemExit of the model's must not end the caller's thread.

    A StopIteration cannot be raised in a coroutine: asyncio would drop it, and the caller would wait for ever.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = BatchFailed(f"The call raised {error!r}.")
    failure.__cause__ = error
    return failure
