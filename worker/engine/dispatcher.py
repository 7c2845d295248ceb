"""How the device thread and the collate thread wait for their next batch."""

import threading
from collections.abc import Sequence

from ...batchers import Batch, Job, Outcome
from ...batchers.forward import Collated
from .open_plan import OpenPlan, Ready
from .ports import ResultSink
from .scheduler import NEVER
from .staging import Sent
from .state import EngineState
from .suspects import needs_leave


class Dispatcher:
    """Waits for what the scheduler and the open plan decide, and tells them what was done."""

    def __init__(self, state: EngineState, sink: ResultSink) -> None:
        """Run what `state` holds; `sink` drops the jobs that nobody wants any more."""
        self._state = state
        self._sink = sink
        self.plan = OpenPlan(state.scheduler)
        self._runnable = threading.Condition(state.lock)
        self._collatable = threading.Condition(state.lock)
        self._stopping = False
        #: When the batch that is put together was chosen.
        self._chosen_at = 0.0

    def work_came(self, jobs: Sequence[Job] = ()) -> None:
        """Wake the threads that have something to do now that `jobs` wait. The lock is held."""
        self.plan.work_came(jobs)
        self._runnable.notify()
        self._wake_collate_thread()

    def stop(self) -> None:
        """End both threads once nothing runs any more. The lock is held."""
        self._stopping = True
        self._runnable.notify()
        self._collatable.notify()

    # -- Device thread -----------------------------------------------------------------------------------------------

    def wait_for_batch(self) -> Ready | None:
        """Return the batch that runs now, which counts as started; None once the engine stops."""
        state = self._state
        while (ready := self._wait_for_chosen()) is not None:
            count = len(ready.batch.jobs)
            if self._drop_cancelled(ready.batch) and self._is_admitted(ready.batch):
                with state.lock:
                    state.scheduler.started(ready.batch, state.clock())
                    self.plan.expect()
                    self._wake_collate_thread()
                # The collated inputs still contain a dropped job, so they cannot be used.
                return ready if len(ready.batch.jobs) == count else Ready(ready.batch, None)
        return None

    def _is_admitted(self, batch: Batch) -> bool:
        """Whether a batch may run; a suspect that may not, because another worker runs one, waits again."""
        if batch.closed_by != "suspect" or not needs_leave(batch.jobs[0]) or self._sink.admits(batch):
            return True
        with self._state.lock:
            self._state.scheduler.postpone(batch, self._state.clock())
            self._state.claimable.notify_all()  # because suspects no longer wait for all other jobs to leave
        return False

    def _wait_for_chosen(self) -> Ready | None:
        scheduler = self._state.scheduler
        with self._state.lock:
            while not self._stopping:
                if scheduler.results_wait:  # the settler calls `work_came` once they are stored
                    self._runnable.wait()
                    continue
                if (ready := self.plan.take_ready()) is not None:
                    return ready
                now, wake_at = self._state.clock(), NEVER
                if not self.plan.collating:
                    if (batch := scheduler.next_batch(now)) is not None:
                        return Ready(batch, None)
                    wake_at = scheduler.wake_at()
                _wait_until(self._runnable, wake_at, now)
        return None

    def ran(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Note that jobs of the running batch have outcomes."""
        with self._state.lock:
            batch.finished_at = self._state.clock()
            self._state.scheduler.move("ran", [outcome.job for outcome in outcomes])

    def finished(self, batch: Batch, *, whole: bool) -> None:
        """Note that the running batch is through: `whole` if it ran in one piece."""
        with self._state.lock:
            self._state.scheduler.finished(batch, whole=whole, more=self.plan.has_next)
            self.plan.finished()

    def out_of_memory(self, jobs: Sequence[Job]) -> None:
        """Note that these jobs of the running batch did not fit into memory together."""
        with self._state.lock:
            self._state.scheduler.out_of_memory(jobs)

    # -- Collate thread ----------------------------------------------------------------------------------------------

    def wait_for_next(self) -> Batch | None:
        """Return a batch to put together, when it is time for one; None once the engine stops."""
        while (batch := self._wait_for_choice()) is not None:
            if self._drop_cancelled(batch):
                return batch
            self.collated(None, None)
        return None

    def _wait_for_choice(self) -> Batch | None:
        with self._state.lock:
            while not self._stopping:
                now = self._state.clock()
                if (batch := self.plan.choose(now)) is not None:
                    self._chosen_at = now
                    return batch
                due_at = self.plan.collate_at
                _wait_until(self._collatable, NEVER if due_at <= now else due_at, now)
        return None

    def collated(self, batch: Batch | None, collated: Collated | Sent | None) -> bool:
        """Keep a batch that was put together; return False if the engine drains and the batch is not kept."""
        with self._state.lock:
            draining = self._state.scheduler.draining
            self.plan.collated(None if draining else batch, collated, self._state.clock() - self._chosen_at)
            self._runnable.notify()
        return not draining

    def _wake_collate_thread(self) -> None:
        if self.plan.collates_ahead:
            self._collatable.notify()

    def _drop_cancelled(self, batch: Batch) -> bool:
        """Leave out the jobs that nobody wants any more; return whether any are left."""
        wanted = self._sink.drop_cancelled(batch.jobs)
        if len(wanted) < len(batch.jobs):
            kept = set(map(id, wanted))
            self._state.left([job for job in batch.jobs if id(job) not in kept], "dropped")
            batch.jobs = wanted
        return bool(wanted)


def _wait_until(condition: threading.Condition, when: float, now: float) -> None:
    # A cost may predict that a run takes longer than a lock can wait.
    condition.wait(None if when == NEVER else min(max(0.0, when - now), threading.TIMEOUT_MAX))
