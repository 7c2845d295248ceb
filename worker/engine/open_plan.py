"""The batch after the running one, put together ahead of its run and open to change until then. No I/O, no clock."""

from collections.abc import Sequence
from typing import NamedTuple

from ...batchers import Batch, Job
from ...batchers.forward import Collated
from .. import tuning
from .scheduler import NEVER, Scheduler
from .staging import Sent

_LEAST_URGENT = 9


class Ready(NamedTuple):
    """A batch that may run: put together already, or to be put together by its run."""

    batch: Batch
    collated: Collated | Sent | None


class OpenPlan:
    """Decides when the next batch is put together, and opens it again for a more urgent job. Not thread-safe.

    Jobs may join the next batch until putting it together has to start so that the device does not wait. Nothing is put
    together ahead where runs are too short for that to be worth it, or while the next batch may still grow.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        """Plan what `scheduler` holds."""
        self._scheduler = scheduler
        self._ready: Ready | None = None
        #: Whether a batch is being put together. It neither waits nor is ready.
        self.collating = False
        #: Of the jobs that came since the next batch was chosen: the highest priority, which is the lowest number.
        self._most_urgent = _LEAST_URGENT
        #: When to put the next batch together; NEVER while that can wait until the running one is through.
        self._collate_at = NEVER
        #: The batch for which `_collate_at` was calculated.
        self._expected: Batch | None = None
        #: Moving average of the seconds that putting a batch together takes.
        self._collate_s = 0.0

    @property
    def has_next(self) -> bool:
        """Whether the next batch is chosen."""
        return self.collating or self._ready is not None

    @property
    def collate_at(self) -> float:
        """When the next batch should be put together."""
        return NEVER if self._ready else self._collate_at

    @property
    def collates_ahead(self) -> bool:
        """Whether a batch is to be put together before the running one is through."""
        return self.collate_at != NEVER

    def work_came(self, jobs: Sequence[Job]) -> None:
        """Look at jobs that wait from now on: they may be more urgent than the next batch, or make one worthwhile."""
        if self.has_next:
            self._most_urgent = min([self._most_urgent, *(job.priority for job in jobs)])
            if self._ready is not None and self._outdated(self._ready.batch):
                self._scheduler.reopen(self._ready.batch)
                self._ready = None
        self.expect()

    def expect(self) -> None:
        """Calculate when the batch after the running one should be put together, once there may be one."""
        batch = self._scheduler.running
        if batch is None or batch is self._expected or not self._scheduler.work_waits:
            return
        self._expected = batch
        expected_s = float(self._scheduler.tasks[batch.task].cost(batch.rows, batch.longest)) / 1000
        if expected_s >= tuning.WORTH_COLLATING_AHEAD_S:
            self._collate_at = batch.started_at + max(0.0, expected_s - 2 * self._collate_s)

    def finished(self) -> None:
        """Note that the running batch is through."""
        self._collate_at = NEVER

    def choose(self, now: float) -> Batch | None:
        """Take a batch to put together, if it is time for one."""
        if self.collate_at > now or (batch := self._scheduler.next_batch(now, closed=True)) is None:
            return None
        self.collating = True
        self._most_urgent = _LEAST_URGENT
        return batch

    def collated(self, batch: Batch | None, collated: Collated | Sent | None, seconds: float) -> None:
        """Keep a batch that took `seconds` to be put together, unless a more urgent job came meanwhile.

        None stands for a batch that is not to be kept.
        """
        self.collating = False
        self._collate_s += (seconds - self._collate_s) / 4
        if batch is None:
            return
        if self._outdated(batch):
            self._scheduler.reopen(batch)
        else:
            self._ready = Ready(batch, collated)

    def take_ready(self) -> Ready | None:
        """Take the batch that is ready, if there is one."""
        ready, self._ready = self._ready, None
        return ready

    def _outdated(self, batch: Batch) -> bool:
        return any(job.priority > self._most_urgent for job in batch.jobs)
