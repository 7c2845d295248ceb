"""Decides which messages Celery gets, and when: as many as its pool prefetches, and no more bytes than it may hold."""

import heapq
import threading
import time
from collections.abc import Iterable, Sequence, Set
from itertools import groupby
from operator import attrgetter

from celery.worker.request import Request

from ....configs import TaskOptions
from ... import tuning
from ...broker import Claim, HeldAs
from ...engine import Capacity
from ..wire.kombu_message import addressee
from . import worker_state
from .context import WorkerContext

#: A task name that stands for all calls of batch tasks that go over the Celery bridge, and one for all plain tasks.
CELERY, PLAIN = "", " "

#: What Celery has in hand.
IN_HAND = (HeldAs.BRIDGED, HeldAs.PLAIN, HeldAs.POOLED, HeldAs.ETA)


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
        self._retry = context.retry
        max_waiting = [task.options.max_waiting for task in context.tasks.values()]
        self._max_jobs = max(max_waiting, default=TaskOptions().max_waiting)
        self._max_bytes = int(context.options.held_max_bytes * tuning.CELERY_PART)
        self._probe_at = 0.0
        #: A heap: when its bytes are to be fetched, its position among the claims, the bytes that it takes, the claim.
        self._parked: list[tuple[float, int, int, Claim]] = []
        self._lock = threading.Lock()

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
                self.park(claim, ahead - tuning.FETCH_AHEAD_S)
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

    def park(self, claim: Claim, seconds: float) -> None:
        """Keep a message's lease, and fetch its bytes again after `seconds`."""
        entry = (time.monotonic() + seconds, claim.seq, claim.size, claim)
        self._leases.change(claim, HeldAs.PARKED, 0)
        claim.message = b""
        with self._lock:
            heapq.heappush(self._parked, entry)

    @property
    def in_pool(self) -> Set[str]:
        """The tags of plain tasks that wait for a thread of Celery's pool, or run there. Any thread."""
        return {claim.tag for claim in self._leases.held() if claim.held_as is HeldAs.POOLED}

    def enter_pool(self, request: Request) -> bool:
        """Note that a plain task goes to Celery's pool; return False if its message was lost while it waited."""
        claim = self._leases.find(request.message.delivery_tag)
        if claim is None:  # it runs elsewhere
            worker_state.forget([request])
            return False
        self._leases.change(claim, HeldAs.POOLED, claim.size)
        return True

    @property
    def next_due_s(self) -> float:
        """Seconds until the next parked message is due; one that has no room yet is looked at again soon."""
        if not self._parked:
            return tuning.ARRIVAL_WAIT_S
        return min(max(self._parked[0][0] - time.monotonic(), tuning.CAPACITY_WAIT_S), tuning.ARRIVAL_WAIT_S)

    def fetch_due(self) -> list[Claim]:
        """Return parked messages that are due and for which there is room, with their bytes. Claim thread."""
        due = self._take_due()
        fetched: list[Claim] = []
        for _, group in groupby(sorted(due, key=_queue_name), key=_queue_name):
            claims = [claim for claim in group if self._leases.holds(claim)]
            messages = self._retry.once(lambda claims=claims: self._leases.fetch(claims)) if claims else []  # type: ignore[misc]
            if messages is None:
                for claim in claims:
                    self.park(claim, tuning.PARK_AGAIN_S)
                continue
            for claim, message in zip(claims, messages, strict=True):
                if message is None:
                    self._leases.let_go([claim])
                else:
                    claim.message = message
                    self._leases.change(claim, HeldAs.ETA, len(message) + tuning.CELERY_OBJECTS_BYTES)
                    fetched.append(claim)
        return fetched

    def _take_due(self) -> Sequence[Claim]:
        due: list[Claim] = []
        if not self._parked or self._parked[0][0] > (now := time.monotonic()):
            return due
        free = self._free_bytes
        with self._lock:
            while self._parked and self._parked[0][0] <= now and len(due) < tuning.FETCH_MAX_JOBS:
                free -= self._parked[0][2]
                if free < 0 and (due or self._leases.bytes_of(*IN_HAND)):
                    break
                due.append(heapq.heappop(self._parked)[3])
        return due


_queue_name = attrgetter("queue.name")
