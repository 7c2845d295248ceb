"""The device's two waits: for a batch to run, and for the next batch to put together meanwhile."""

from collections.abc import Sequence

from ...batchers import Batch, Job, Outcome
from ...batchers.forward import Collated
from .open_plan import Ready
from .ports import ResultSink
from .returns import Returns
from .scheduler import NEVER
from .staging import Sent
from .state import EngineState


class Device:
    """Waits for what the scheduler and the open plan decide, and tells them what was done."""

    def __init__(self, state: EngineState, sink: ResultSink, returns: Returns) -> None:
        """Run what `state` holds; `sink` drops the jobs that nobody wants any more."""
        self._state = state
        self._sink = sink
        self._returns = returns
        #: When the batch that is put together was chosen.
        self._chosen_at = 0.0
        #: Whether the running batch ran in one piece.
        self._whole = True

    # -- Device thread -----------------------------------------------------------------------------------------------

    def wait_for_batch(self) -> Ready | None:
        """Return the batch that runs now, which counts as started; None once the engine stops."""
        state = self._state
        while (ready := self._wait_for_chosen()) is not None:
            count = len(ready.batch.jobs)
            if self._drop_cancelled(ready.batch):
                with state.lock:
                    state.scheduler.started(ready.batch, state.clock())
                    state.plan.expect()
                    state.wake_collate_thread()
                # A job that was dropped is still in what was put together, which therefore cannot be used.
                return ready if len(ready.batch.jobs) == count else Ready(ready.batch, None)
        return None

    def _wait_for_chosen(self) -> Ready | None:
        state, plan = self._state, self._state.plan
        with state.lock:
            while not state.stopping:
                if state.scheduler.results_wait:  # the settler calls `work_came` once they are stored
                    state.runnable.wait()
                    continue
                if (ready := plan.take_ready()) is not None:
                    return ready
                now, wake_at = state.clock(), NEVER
                if not plan.collating:
                    if (batch := state.scheduler.next_batch(now)) is not None:
                        return Ready(batch, None)
                    wake_at = state.scheduler.wake_at()
                state.runnable.wait(None if wake_at == NEVER else max(0.0, wake_at - now))
        return None

    def ran(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Note that jobs of the running batch have outcomes."""
        state = self._state
        with state.lock:
            batch.finished_at = state.clock()
            self._whole = len(outcomes) == len(batch.jobs)
            state.scheduler.ran([outcome.job for outcome in outcomes])

    def finished(self, batch: Batch) -> None:
        """Note that the running batch is through."""
        state = self._state
        with state.lock:
            state.scheduler.finished(batch, whole=self._whole, more=state.plan.has_next)
            state.plan.finished()

    def out_of_memory(self, jobs: Sequence[Job]) -> None:
        """Note that these jobs of the running batch did not fit into memory together."""
        with self._state.lock:
            self._state.scheduler.out_of_memory(jobs)

    # -- Collate thread ----------------------------------------------------------------------------------------------

    def wait_for_next(self) -> Batch | None:
        """Return a batch to put together, when it is time for one; None once the engine stops."""
        state = self._state
        while (batch := self._wait_for_choice()) is not None:
            if self._drop_cancelled(batch):
                return batch
            with state.lock:
                state.plan.collating = False
                state.runnable.notify()
        return None

    def _wait_for_choice(self) -> Batch | None:
        state, plan = self._state, self._state.plan
        with state.lock:
            while not state.stopping:
                now = state.clock()
                if (batch := plan.choose(now)) is not None:
                    self._chosen_at = now
                    return batch
                due_at = plan.collate_at
                state.collatable.wait(None if due_at == NEVER or due_at <= now else due_at - now)
        return None

    def collated(self, batch: Batch, collated: Collated | Sent | None) -> None:
        """Keep a batch that was put together, or give its jobs back if the engine drains."""
        state = self._state
        with state.lock:
            draining = state.scheduler.draining
            state.plan.collated(None if draining else batch, collated, state.clock() - self._chosen_at)
            state.runnable.notify()
        if draining:
            self._returns.add(batch.jobs)

    def _drop_cancelled(self, batch: Batch) -> bool:
        """Leave out the jobs that nobody wants any more; return whether any are left."""
        wanted = self._sink.drop_cancelled(batch.jobs)
        if len(wanted) < len(batch.jobs):
            kept = set(map(id, wanted))
            self._state.left([job for job in batch.jobs if id(job) not in kept], "dropped")
            batch.jobs = wanted
        return bool(wanted)
