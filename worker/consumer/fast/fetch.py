"""Fetches jobs: waits for messages, claims them, and hands over to Celery what is no fast call."""

import time
from collections.abc import Callable, Mapping, Sequence, Set

import redis
from celery import signals
from celery.worker import state

from ....batchers import Job
from ....producer import private
from ... import tuning
from ...broker import ArrivalWatcher, Claim, Queue
from ...engine import Capacity
from ..compat import worker_state
from ..compat.bridge import CeleryBridge
from ..compat.context import WorkerContext
from ..compat.worker_exit import end_worker_unless_it_recovers
from ..wire.decode import FastCall, decode
from ..wire.kombu_message import addressee
from ..wire.request import FastRequest
from .events import Events
from .queue_selector import CELERY, QueueSelector, Selection


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
        self._consumer = context.consumer
        self._tasks = context.tasks
        self._leases = context.leases
        self._hub = context.hub
        self._retry = context.retry
        self._intake = context.intake
        self._bridge = bridge
        self._events = events
        self._watcher = watcher
        self._queues = queues
        self._selector = QueueSelector()
        self._max_bytes = context.options.claim_max_bytes
        self._max_jobs = max([tuning.CLAIM_MAX_JOBS, *(task.options.max_batch_size for task in self._tasks.values())])
        #: Whether the last claim was small and emptied the queues.
        self._claim_was_small = False

    def claim(self, capacity: Mapping[str, Capacity]) -> list[Job]:
        """Wait for messages and claim them."""
        queues_are_empty = self._claim_was_small
        if queues_are_empty:
            self._follow_up_small_claim()
        if celery := self._bridge.capacity:
            capacity = {**capacity, CELERY: celery}
        selection = self._selector.next(self._queues(), capacity, self._max_bytes)
        if not selection.queues or self._intake.hung:
            self._wait_for_capacity()
            return []
        if not queues_are_empty:
            if claims := self._take(selection):
                return self._sort(claims)
            if selection.left_out or self._leases.withheld:
                self._wait_for_capacity()
                return []
        arrived = not selection.left_out and self._retry.once(
            "watch", lambda: self._watcher.wait(selection.queues, tuning.ARRIVAL_WAIT_S)
        )
        # The capacity cannot have become less meanwhile.
        return self._sort(self._take(selection)) if arrived and not self._intake.hung else []

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
        self._watcher.interrupted = True
        self._hub.resume()

    def give_back_rest(self) -> None:
        """Let other workers have everything but what runs, here or in Celery's pool, because user code hangs."""
        self._intake.on_work(self._intake.hung_jobs, begins=True)  # noted, whatever step they hang in
        running = {job.reply.claim.tag for job in (*self._intake.running, *self._intake.hung_jobs)}
        running |= self._bridge.in_hand.in_pool
        self._leases.give_back(claim for claim in self._leases.held() if claim.tag not in running)
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
        elif claims:
            self._retry.once("watch", lambda: self._watcher.wake_next_worker(more=self._leases.withheld > 0))
        return claims

    def _follow_up_small_claim(self) -> None:
        """Give the jobs of a small claim a head start to the device; then announce them and wake the next worker."""
        self._claim_was_small = False
        self._intake.wait_for_capacity(tuning.SMALL_CLAIM_HEAD_START_S)
        self._hub.resume()
        self._retry.once("watch", lambda: self._watcher.wake_next_worker(more=False))

    def _wait_for_capacity(self) -> None:
        self._intake.wait_for_capacity(tuning.CAPACITY_WAIT_S)
        self._bridge.in_hand.forget_lost()

    def _sort(self, claims: Sequence[Claim]) -> list[Job]:
        """Return the jobs of fast calls, and hand all other messages over to Celery."""
        if not claims:
            return []
        now, jobs, bridged, delivered = time.monotonic(), [], [], set()
        revoked, tasks, server_time = state.revoked, self._without_rate_limit(), self._leases.server_time
        for claim in claims:
            call = decode(claim.message, self._consumer.accept)
            if call is None or call.headers.task not in tasks or (revoked and call.headers.id in revoked):
                bridged.append(claim)
            else:
                jobs.append(to_job(claim, call, self._request(claim, call), now, server_time))
                delivered.add((claim.queue.name, call.headers.task))
        for claim in bridged:
            delivered.add((claim.queue.name, CELERY))
            task, _ = addressee(claim.message)
            if task is not None and task in self._tasks:  # it joins that task's jobs once Celery has accepted it
                delivered.add((claim.queue.name, task))
        self._selector.learn(delivered)
        if jobs:
            self._announce([job.reply for job in jobs])
        if bridged:
            self._bridge.hand_over(bridged)
        return jobs

    def _without_rate_limit(self) -> Set[str]:
        """Return the batch tasks without a rate limit. Celery's own buckets limit the others."""
        if self._consumer.disable_rate_limits:
            return self._tasks.keys()
        return {name for name in self._tasks if not self._consumer.task_buckets[name]}

    def _request(self, claim: Claim, call: FastCall) -> FastRequest:
        headers = call.headers
        name = headers.shadow or headers.task
        task = self._tasks[headers.task]
        return FastRequest(claim, headers, task, self._bridge.build_request, headers.id, name, call.in_chord)

    def _announce(self, requests: Sequence[FastRequest]) -> None:
        if private.receivers(signals.task_received):  # sent at once, because it comes before all other signals
            for request in requests:
                signals.task_received.send(sender=self._consumer, request=request)
        self._hub.call(self._received, requests)

    def _received(self, requests: Sequence[FastRequest]) -> None:
        worker_state.reserved(requests)
        self._events.received(requests)


def to_job(claim: Claim, call: FastCall, request: FastRequest, now: float, server_time: float) -> Job:
    """Return the job of a fast call.

    `now` is on the engine's clock, in seconds. The caller's times are compared with `server_time`, in seconds since the
    epoch, because this machine's clock may be wrong, too.
    """
    headers = call.headers
    enqueued_at = headers.batchery_enqueued_at
    job = Job(
        headers.id,
        headers.task,
        call.args,
        call.kwargs,
        reply=request,
        # A caller whose clock is ahead of the server's counts as one that has just sent its call.
        enqueued_at=now if enqueued_at is None else now - max(0.0, server_time - enqueued_at),
        seq=claim.seq,
        priority=call.priority,
        deadline=None if call.expires_at is None else now + call.expires_at - server_time,
        # A compressed message is larger once it is held.
        size=max(len(claim.message), call.size),
    )
    if call.redelivered:
        job.redelivered, (job.lost, job.deaths, job.lone_deaths) = True, call.lost
    return job
