"""Host: the engine inside this process, with no broker."""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from types import TracebackType
from typing import Any, Self

from ...batchers import Batch, BatchFailed, Job, JobRejected, Outcome
from ...configs import WorkerOptions
from .engine import Engine
from .model import Model


class Host:
    """Serves one task to the threads and coroutines of this process, in the same batches as a worker would.

        with Host(embed) as host:
            vector = host("a text")                  # from any thread; waits
            future = host.submit("another")          # a concurrent.futures.Future
            vectors = host.map(["many", "texts"])    # in order
            vector = await host.acall("a text")      # from a coroutine

    At most `max_queue` calls may wait; then callers wait too, or get `JobRejected` if they asked not to.
    """

    def __init__(self, task: Model, *, max_queue: int | None = None, options: WorkerOptions | None = None) -> None:
        """Host `task`; `max_queue` defaults to twice what the planner looks ahead."""
        self._task = task
        self._options = options or WorkerOptions()
        self._front = _LocalFront(max_queue or 2 * task.options.max_waiting)
        self._engine = Engine({task.name: task}, self._front, self._options)

    def start(self) -> Self:
        """Load the model and start serving."""
        self._engine.load()
        self._engine.start()
        return self

    def stop(self) -> None:
        """Finish every call that was taken, then stop. Later calls are rejected."""
        self._front.close()
        self._engine.drain(self._options.drain_timeout_s)
        self._front.fail_rest(BatchFailed("The host stopped before this call was run."))

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    def submit(self, *args: Any, block: bool = True, **kwargs: Any) -> "Future[Any]":
        """Send one call; return its future. Cancelling the future withdraws a call that does not run yet.

        Raises:
            JobRejected: the host is stopped, or its queue is full and `block` is false.
        """
        return self._front.put(self._task.name, args, kwargs, block=block)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send one call and wait for its result."""
        return self.submit(*args, **kwargs).result()

    def map(self, items: Iterable[Any]) -> list[Any]:
        """Send a call for each of `items` and wait for all; return the results in order."""
        futures = [self.submit(item) for item in items]
        return [future.result() for future in futures]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Send one call and await its result; cancelling the coroutine withdraws the call."""
        future = await asyncio.to_thread(self.submit, *args, **kwargs)
        return await asyncio.wrap_future(future)

    def stats(self) -> dict[str, int | float]:
        """Return what was done so far, as `Engine.stats`."""
        return self._engine.stats()


class _LocalFront:
    """A bounded queue of calls whose reply addresses are futures."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ids = itertools.count()
        self._closed = False
        self._unanswered: dict[int, Job] = {}

    def put(self, task: str, args: Sequence[Any], kwargs: dict[str, Any], *, block: bool) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._changed:
            if block:
                self._changed.wait_for(lambda: self._closed or len(self._queue) < self._most)
            if self._closed:
                raise JobRejected("The host is stopped: it takes no more calls.")
            if len(self._queue) >= self._most:
                raise JobRejected(f"The host's queue is full: {self._most} calls wait. Try again later.")
            seq = next(self._ids)
            job = Job(str(seq), task, args, kwargs, future, time.monotonic(), seq)
            self._queue.append(job)
            self._unanswered[seq] = job
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Take no more calls, and wait until the engine has answered all that were taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._unanswered)

    def fail_rest(self, error: BaseException) -> None:
        with self._changed:
            jobs = list(self._unanswered.values())
        self._answer(Outcome(job, error=error) for job in jobs)

    # -- The engine's side: see Front --------------------------------------------------------------------------------

    def claim(self, room: int) -> list[Job]:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                self._changed.wait_for(lambda: not self._unanswered)
                return []
            jobs = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
            self._changed.notify_all()
        return jobs

    def interrupt(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def still_wanted(self, jobs: list[Job]) -> list[Job]:
        wanted = [job for job in jobs if job.reply.set_running_or_notify_cancel()]
        if len(wanted) < len(jobs):
            keep = set(map(id, wanted))
            self._forget(job for job in jobs if id(job) not in keep)
        return wanted

    def started(self, batch: Batch) -> None:
        """Nothing to note: futures were marked as running by `still_wanted`."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self._answer(outcomes)

    def give_back(self, jobs: Sequence[Job]) -> None:
        self._answer(Outcome(job, error=BatchFailed("The host stopped before this call was run.")) for job in jobs)

    def broken(self, error: Exception) -> None:
        self.interrupt()
        self.fail_rest(BatchFailed(f"The host's engine died: {error!r}"))

    def _answer(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            future = outcome.job.reply
            try:
                if outcome.error is None:
                    future.set_result(outcome.value)
                else:
                    future.set_exception(outcome.error)
            except InvalidStateError:
                pass  # cancelled meanwhile, by a caller that waits no more
            self._forget([outcome.job])

    def _forget(self, jobs: Iterable[Job] | Iterator[Job]) -> None:
        with self._changed:
            for job in jobs:
                self._unanswered.pop(job.seq, None)
            self._changed.notify_all()
