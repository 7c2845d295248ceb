"""Jobs that a draining engine gives back."""

from collections.abc import Sequence

from ...batchers import Job
from .open_plan import OpenPlan
from .ports import JobSource
from .state import EngineState


class Returns:
    """Gives back the jobs that do not run because the engine drains, in one step, so that their order stays."""

    def __init__(self, state: EngineState, source: JobSource) -> None:
        """Give back to `source`."""
        self._state = state
        self._source = source
        #: Jobs to be given back together; None if jobs go back at once.
        self._gathered: list[Job] | None = None

    def gather(self, plan: OpenPlan) -> None:
        """Let the engine drain, and keep what is to be given back until `release`."""
        state = self._state
        with state.lock:
            ready = plan.take_ready()
            jobs = state.scheduler.drain()
            if ready is not None:
                state.scheduler.move("returned", ready.batch.jobs)
                jobs += ready.batch.jobs
            self._gathered = [*(self._gathered or ()), *jobs]
            for condition in (state.claimable, *state.unprepared.values()):
                condition.notify_all()

    def add(self, jobs: Sequence[Job]) -> None:
        """Give back jobs: with the others if they are still gathered, else at once."""
        if not jobs:
            return
        with self._state.lock:
            self._state.scheduler.move("returned", jobs)
            if self._gathered is not None:
                self._gathered += jobs
                jobs = []
            self._state.drained.notify_all()
        self._give_back(jobs)

    def release(self) -> None:
        """Give back what was gathered, in claim order."""
        with self._state.lock:
            jobs, self._gathered = self._gathered, None
        self._give_back(sorted(jobs or (), key=lambda job: job.seq))

    def _give_back(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self._source.give_back(jobs)
            self._state.left(jobs, "given back")
