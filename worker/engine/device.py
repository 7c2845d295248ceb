"""The device's two threads: one runs batch after batch, the other puts the next one together meanwhile."""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...batchers import Batch, Job
from ...batchers.forward import Collated
from .front import Front
from .runner import Runner
from .scheduler import Scheduler
from .settler import Settler
from .staging import Sent

_NEVER = float("inf")
_LEAST_URGENT = 9

#: A batch that took less, in seconds, of so many jobs is settled by the device's thread: to wake another one for it
#: costs more than the device could do meanwhile.
_INSTANT_S, _MANY = 0.001, 64


class _Ready(NamedTuple):
    """A batch that may run: put together already, or to be put together by its run."""

    batch: Batch
    collated: Collated | Sent | None


class Device:
    """Plans, puts together and runs batches, until it is stopped.

    While a batch runs, the next one is an open plan: jobs may still join until putting it together has to start so that
    the device does not wait, and a more urgent one opens it again until it runs. Where runs are too short for that to
    pay, or the next batch may still grow when the device is free, the device's thread does all of it by itself.
    """

    def __init__(
        self,
        core: Scheduler,
        lock: threading.Lock,
        runner: Runner,
        front: Front,
        settler: Settler,
        *,
        clock: Callable[[], float],
        leave: Callable[[Sequence[Job]], None],
        return_: Callable[[list[Job]], None],
    ) -> None:
        """`lock` guards `core`; `leave` is called for jobs nobody wants, `return_` for what will not run."""
        self._core = core
        self._lock = lock
        self._runner = runner
        self._front = front
        self._settler = settler
        self._clock = clock
        self._leave = leave
        self._return = return_
        self._work = threading.Condition(lock)
        self._ahead = threading.Condition(lock)
        self._ready: _Ready | None = None
        #: Whether a batch is being put together that neither waits nor is ready. Guarded by the lock.
        self.collating = False
        #: Of the jobs that came since the batch was chosen that is put together or ready: the highest priority.
        self._most_urgent = _LEAST_URGENT
        self._stopping = False

    def work_came(self, jobs: Sequence[Job] = ()) -> None:
        """Look at what waits, now that `jobs` do. The lock is held."""
        if self.collating or self._ready is not None:
            self._most_urgent = min([self._most_urgent, *(job.priority for job in jobs)])
            if self._ready is not None and self._outdated(self._ready.batch):
                self._core.reopen(self._ready.batch)
                self._ready = None
        self._work.notify()
        if self._core.collates_ahead:
            self._ahead.notify()

    def stop(self) -> None:
        """End both threads once nothing runs any more. The lock is held."""
        self._stopping = True
        self._work.notify()
        self._ahead.notify()

    def take_ready(self) -> list[Job]:
        """Take back the jobs that are put together and do not run yet. The lock is held."""
        ready, self._ready = self._ready, None
        return ready.batch.jobs if ready else []

    # -- Running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run batches as long as there are any to come."""
        while (ready := self._next()) is not None:
            batch, collated = ready
            self._front.started(batch)
            parts = 0
            for outcomes in self._runner.run(batch, collated, self._out_of_memory):
                batch.finished_at = self._clock()
                parts += 1
                if self._core.nothing_waits:  # asked without the lock: a stale answer does no harm
                    self._settler.settle_soonest(outcomes)
                elif batch.run_s < _INSTANT_S and len(outcomes) >= _MANY:
                    self._settler.settle_here(outcomes)
                else:
                    self._settler.put(outcomes)
            with self._lock:
                self._core.finished(batch, whole=parts == 1, more=self.collating or self._ready is not None)
        # After a drain that gave up: what has run since is settled all the same, if the front still can.
        self._settler.close()

    def _out_of_memory(self, jobs: Sequence[Job]) -> None:
        with self._lock:
            self._core.out_of_memory(jobs)

    def _next(self) -> _Ready | None:
        while (ready := self._wait()) is not None:
            count = len(ready.batch.jobs)
            if self._still_wanted(ready.batch):
                if len(ready.batch.jobs) < count:  # what was put together has more in it
                    ready = _Ready(ready.batch, None)
                with self._lock:
                    self._core.started(ready.batch, self._clock())
                    if self._core.collates_ahead:
                        self._ahead.notify()
                return ready
        return None

    def _wait(self) -> _Ready | None:
        with self._lock:
            while not self._stopping:
                if self._core.results_wait:  # whoever settles calls `work_came`
                    self._work.wait()
                    continue
                if self._ready is not None:
                    ready, self._ready = self._ready, None
                    return ready
                now = self._clock()
                batch = None if self.collating else self._core.next_batch(now)
                if batch is not None:
                    return _Ready(batch, None)
                wake_at = _NEVER if self.collating else self._core.wake_at()
                self._work.wait(None if wake_at == _NEVER else max(0.0, wake_at - now))
        return None

    # -- Putting together --------------------------------------------------------------------------------------------

    def collate_ahead(self) -> None:
        """Put the next batch together while one runs."""
        while (batch := self._wait_for_next()) is not None:
            began = self._clock()
            collated = self._runner.collate(batch) if self._still_wanted(batch) else None
            with self._lock:
                self.collating = False
                self._core.collated(self._clock() - began)
                if batch.jobs and not self._core.draining:
                    if self._outdated(batch):
                        self._core.reopen(batch)
                    else:
                        self._ready = _Ready(batch, collated)
                    batch = None
                self._work.notify()
            if batch is not None:
                self._return(batch.jobs)

    def _wait_for_next(self) -> Batch | None:
        with self._lock:
            while not self._stopping:
                now = self._clock()
                due_at = _NEVER if self._ready else self._core.collate_at
                if due_at <= now and (batch := self._core.next_batch(now, ahead=True)) is not None:
                    self.collating = True
                    self._most_urgent = _LEAST_URGENT
                    return batch
                self._ahead.wait(None if due_at == _NEVER or due_at <= now else due_at - now)
        return None

    def _outdated(self, batch: Batch) -> bool:
        """Whether a job came that is more urgent than one of this batch."""
        return any(job.priority > self._most_urgent for job in batch.jobs)

    def _still_wanted(self, batch: Batch) -> bool:
        """Leave out the jobs that nobody wants any more; return whether any are left."""
        wanted = self._front.drop_cancelled(batch.jobs)
        if len(wanted) < len(batch.jobs):
            kept = set(map(id, wanted))
            self._leave([job for job in batch.jobs if id(job) not in kept])
            batch.jobs = wanted
        return bool(wanted)
