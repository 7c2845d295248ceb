"""Decides which messages Celery gets, and when: as many as its pool prefetches, and no more bytes than it may hold."""

import time
from collections.abc import Iterable

from ....configs import TaskOptions
from ... import tuning
from ...broker import Claim, HeldAs
from ...engine import Capacity
from ..wire.kombu_message import addressee
from .context import WorkerContext
from .in_hand import IN_HAND
from .parking import Parking

#: A task name that stands for all calls of batch tasks that go over the Celery bridge, and one for all plain tasks.
CELERY, PLAIN = "", " "


class Admission:
    """Bounds what Celery has in hand. Any thread, unless it is told.

    Celery's own prefetch rule (pool size times `worker_prefetch_multiplier`) holds for the calls of plain tasks: what a
    claim takes beyond goes back. Messages with an ETA do not count there, as in Celery. Where they would take too much
    memory they are *parked*: their lease stays ours, but their bytes are only at the server until they are due.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._consumer = context.consumer
        self._tasks = context.tasks
        self._leases = context.leases
        max_waiting = [task.options.max_waiting for task in context.tasks.values()]
        self._max_jobs = max(max_waiting, default=TaskOptions().max_waiting)
        self._max_bytes = int(context.options.held_max_bytes * tuning.CELERY_PART)
        self._probe_at = 0.0
        self.parking = Parking(context.leases, context.retry)

    @property
    def _free_bytes(self) -> int:
        return self._max_bytes - self._leases.bytes_of(*IN_HAND)

    @property
    def _plain(self) -> int:
        return self._leases.count(HeldAs.PLAIN) + self._leases.count(HeldAs.POOLED)

    @property
    def _max_plain(self) -> int:
        """Celery's own rule, which may change with the pool; without prefetch limit as many as of a batch task."""
        return self._consumer.pool.num_processes * self._consumer.prefetch_multiplier or self._max_jobs

    def capacity(self) -> dict[str, Capacity]:
        """Return how much more may be claimed for Celery. Claim thread."""
        free = self._free_bytes
        if free < self._max_bytes // 8:
            return {}
        jobs = {CELERY: self._max_jobs - self._leases.count(HeldAs.BRIDGED)}
        jobs[PLAIN] = self._max_plain - self._plain
        now = time.monotonic()
        if jobs[PLAIN] <= 0 and now >= self._probe_at:
            jobs[PLAIN] = tuning.PROBE_MAX_JOBS
            self._probe_at = now + tuning.PROBE_S
        return {name: Capacity(count, free) for name, count in jobs.items() if count > 0}

    def admit(self, claims: Iterable[Claim]) -> tuple[list[Claim], set[tuple[str, str]]]:
        """Return those messages that Celery gets now, and what the queues delivered: pairs of queue's name and task.

        The others go back, or are parked. Claim thread.
        """
        admitted: list[Claim] = []
        delivered: set[tuple[str, str]] = set()
        now = time.time()
        for claim in claims:
            task, _, eta = addressee(claim.message)
            size = len(claim.message) + tuning.CELERY_OBJECTS_BYTES
            ahead = 0.0 if eta is None else eta - now
            if ahead > 0.0 and self._has_room_for_eta(size):
                self._leases.change(claim, HeldAs.ETA, size)
            elif ahead > tuning.FETCH_AHEAD_S:
                self.parking.park(claim, ahead - tuning.FETCH_AHEAD_S)
                continue
            elif task is not None and task in self._tasks:  # it joins that task's jobs once Celery has accepted it
                self._leases.change(claim, HeldAs.BRIDGED, size)
                delivered.update([(claim.queue.name, CELERY), (claim.queue.name, task)])
            else:
                delivered.add((claim.queue.name, PLAIN))
                if self._plain >= self._max_plain:
                    self._leases.give_back_soon(claim)
                    continue
                self._leases.change(claim, HeldAs.PLAIN, size)
            admitted.append(claim)
        return admitted, delivered

    def _has_room_for_eta(self, size: int) -> bool:
        most = self._consumer.app.conf.worker_eta_task_limit
        if most is not None and self._leases.count(HeldAs.ETA) >= most:
            return False
        return self._leases.bytes_of(HeldAs.ETA) + size <= self._max_bytes * tuning.ETA_PART

    def room_for(self, claim: Claim) -> int | None:
        """Return the bytes that a message may have once it is decompressed; None: any, as it is the only one."""
        others = self._leases.bytes_of(*IN_HAND) - claim.size
        return max(0, self._max_bytes - others) if others > 0 else None

    def decompressed(self, claim: Claim, size: int) -> None:
        """Note the bytes of a message's body."""
        self._leases.change(claim, claim.held_as, max(claim.size, size + tuning.CELERY_OBJECTS_BYTES))

    def fetch_due(self) -> list[Claim]:
        """Return parked messages that are due and for which there is room, with their bytes. Claim thread."""
        return self.parking.fetch_due(self._free_bytes, is_empty=not self._leases.bytes_of(*IN_HAND))
