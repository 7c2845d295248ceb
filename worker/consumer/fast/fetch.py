"""Fetches jobs: waits for messages, and claims them."""

from collections.abc import Callable, Mapping, Sequence

import redis

from ....batchers import Job
from ... import tuning
from ...broker import ArrivalWatcher, Claim, Queue
from ...engine import Capacity
from ..compat import worker_state
from ..compat.bridge import CeleryBridge
from ..compat.context import WorkerContext
from ..compat.worker_exit import end_worker_unless_it_recovers
from .events import Events
from .queue_selector import QueueSelector, Selection
from .sort import ClaimSorter


class QueueSource:
    """The engine's source of jobs: claims them from Redis."""

    def __init__(
        self,
        context: WorkerContext,
        bridge: CeleryBridge,
        events: Events,
        watcher: ArrivalWatcher,
        queues: Callable[[], Sequence[Queue]],
    ) -> None:
        """Claim from what `queues()` returns, which changes while the worker runs."""
        self._context = context
        self._tasks = context.tasks
        self._leases = context.leases
        self._hub = context.hub
        self._retry = context.retry
        self._intake = context.intake
        self._bridge = bridge
        self._watcher = watcher
        self._queues = queues
        self._selector = QueueSelector()
        self._sorter = ClaimSorter(context, bridge, events)
        self._max_bytes = context.options.claim_max_bytes
        self._max_jobs = max([tuning.CLAIM_MAX_JOBS, *(task.options.max_batch_size for task in self._tasks.values())])
        #: Whether the last claim was small and emptied the queues.
        self._claim_was_small = False
        #: Whether the last wait ended without a message, so that a claim would find nothing.
        self._waited_in_vain = False

    def claim(self, capacity: Mapping[str, Capacity]) -> list[Job]:
        """Wait for messages and claim them."""
        queues_are_empty = self._claim_was_small or self._waited_in_vain
        if self._claim_was_small:
            self._follow_up_small_claim()
        self._bridge.hand_over_due()
        capacity = {**capacity, **self._bridge.admission.capacity()}
        selection = self._selector.next(self._queues(), capacity, self._max_bytes)
        if not selection.queues or self._intake.hung or self._sorter.hub_is_behind:
            self._wait_for_capacity()
            return []
        if not queues_are_empty:
            if claims := self._take(selection):
                return self._sort(claims, selection)
            if selection.left_out or self._leases.withheld:
                self._wait_for_capacity()
                return []
        self._waited_in_vain = False
        arrived = not selection.left_out and self._retry.once(
            "watch", lambda: self._watcher.wait(selection.queues, self._bridge.admission.parking.next_due_s)
        )
        if not arrived or self._intake.hung:
            # The watcher itself looks at the queues when a wait begins, so that a claim would tell nothing new.
            self._waited_in_vain = arrived is False and not selection.left_out
            return []
        return self._sort(self._take(selection), selection)  # the capacity cannot have become less meanwhile

    def give_back(self, jobs: Sequence[Job]) -> None:
        """Put messages back to the front of their queues, in claim order; if Redis fails, the lease thread does it."""
        claims = [job.reply.claim for job in jobs]
        try:
            self._leases.give_back(claims)
        except redis.RedisError:
            for claim in claims:
                self._leases.give_back_soon(claim)
        self._hub.call(worker_state.forget, [job.reply for job in jobs])

    def interrupt(self) -> None:
        """End every wait, because the worker stops."""
        self._retry.stop()
        self._leases.shares.leave()
        self._leases.has_buffered.set()
        self._watcher.interrupted = True
        self._hub.resume()

    def give_back_rest(self) -> None:
        """Let other workers have everything but what runs, here or in Celery's pool, because user code hangs."""
        self._intake.on_work(self._intake.hung_jobs, begins=True)  # noted, whatever step they hang in
        running = {job.reply.claim.tag for job in (*self._intake.running, *self._intake.hung_jobs)}
        running |= self._bridge.in_hand.in_pool
        self._leases.give_back(claim for claim in self._leases.held() if claim.tag not in running)
        self._leases.shares.leave()
        end_worker_unless_it_recovers(self._context)

    def _take(self, selection: Selection) -> Sequence[Claim]:
        limit = min(sum(selection.limits), self._max_jobs)
        claims: Sequence[Claim] = (
            self._retry.until_stopped(
                lambda: self._leases.claim(selection.queues, limit, selection.max_bytes, selection.limits)
            )
            or ()
        )
        small = 2 * len(claims) <= limit and sum(len(claim.message) for claim in claims) <= tuning.SMALL_CLAIM_MAX_BYTES
        if claims and small and not self._leases.withheld:
            self._claim_was_small = True
            self._hub.pause()
        elif claims or self._leases.withheld:
            self._retry.once("watch", lambda: self._watcher.wake_next_worker(more=self._leases.withheld > 0))
        return claims

    def _follow_up_small_claim(self) -> None:
        """Give the jobs of a small claim a head start to the device; then announce them and wake the next worker."""
        self._claim_was_small = False
        self._intake.wait_for_capacity(tuning.SMALL_CLAIM_HEAD_START_S)
        self._hub.resume()
        self._retry.once("watch", lambda: self._watcher.wake_next_worker(more=False))

    def _wait_for_capacity(self) -> None:
        self._waited_in_vain = False
        self._intake.wait_for_capacity(tuning.CAPACITY_WAIT_S)

    def _sort(self, claims: Sequence[Claim], selection: Selection) -> list[Job]:
        jobs, delivered = self._sorter.sort(claims, selection.max_bytes)
        self._selector.learn(delivered)
        return jobs
