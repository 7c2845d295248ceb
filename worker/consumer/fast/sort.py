"""Sorts claimed messages: fast calls become jobs, and all other messages are handed over to Celery."""

import time
from collections.abc import Collection, Sequence, Set

from celery import signals
from celery.worker import state

from ....batchers import Job
from ....producer import private
from ... import tuning
from ...broker import Claim
from ..compat import worker_state
from ..compat.bridge import CeleryBridge
from ..compat.context import WorkerContext
from ..wire.compression import NoRoom
from ..wire.decode import FastCall, decode
from ..wire.request import FastRequest
from .events import Events


class ClaimSorter:
    """Makes jobs of claims, and announces them on Celery's hub. Claim thread."""

    def __init__(self, context: WorkerContext, bridge: CeleryBridge, events: Events) -> None:
        self._consumer = context.consumer
        self._tasks = context.tasks
        self._leases = context.leases
        self._hub = context.hub
        self._bridge = bridge
        self._events = events
        self._max_behind = context.options.held_max_bytes * tuning.HUB_PART
        #: Bytes of jobs that were announced, and that the hub has seen, since the start: each written by one thread.
        self._announced_bytes = self._seen_bytes = 0

    @property
    def hub_is_behind(self) -> bool:
        """Whether more jobs wait to be announced than fit: a plain task in a solo pool keeps the hub from its calls.

        What follows a job's announcement waits behind it, so this bounds all that waits for the hub.
        """
        return self._announced_bytes - self._seen_bytes > self._max_behind

    def sort(self, claims: Sequence[Claim], max_bytes: int) -> tuple[list[Job], Collection[tuple[str, str]]]:
        """Return the jobs of fast calls, and what the queues delivered: pairs of a queue's name and a task.

        Decompressed, the jobs have at most `max_bytes`; but the first one has a place whatever its size. The messages
        from the first that does not fit go back to their queues.
        """
        if not claims:
            return [], ()
        now, jobs, bridged, delivered = time.monotonic(), [], [], set()
        revoked, tasks, server_time = state.revoked, self._without_rate_limit(), self._leases.server_time
        room: int | None = None
        for place, claim in enumerate(claims):
            try:
                call = decode(claim.message, self._consumer.accept, room=room)
            except NoRoom:
                for left in claims[place:]:
                    self._leases.give_back_soon(left)
                break
            if call is None or call.headers.task not in tasks or (revoked and call.headers.id in revoked):
                bridged.append(claim)
            else:
                room = max(0, (max_bytes if room is None else room) - call.size)
                jobs.append(to_job(claim, call, self._request(claim, call), now, server_time))
                delivered.add((claim.queue.name, call.headers.task))
        if jobs:
            self._announce(jobs)
        if bridged:
            delivered.update(self._bridge.hand_over(bridged))
        return jobs, delivered

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

    def _announce(self, jobs: Sequence[Job]) -> None:
        requests: list[FastRequest] = [job.reply for job in jobs]
        if private.receivers(signals.task_received):  # sent at once, because it comes before all other signals
            for request in requests:
                signals.task_received.send(sender=self._consumer, request=request)
        size = sum([job.size for job in jobs]) + len(jobs) * tuning.HUB_JOB_BYTES
        self._announced_bytes += size
        self._hub.call(self._received, requests, size)

    def _received(self, requests: Sequence[FastRequest], size: int) -> None:
        self._seen_bytes += size
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
