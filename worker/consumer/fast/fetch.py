"""Claiming: from the queues to jobs, or into Celery's hands."""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.worker import state

from ....batchers import Job
from ...broker import ArrivalWatcher, Claim, Leases, Queue
from ...broker.retry import RedisRetry
from ...engine import Room
from ..compat import hub as on_hub
from ..compat.bridge import CeleryBridge
from ..wire.decode import FastCall, decode
from ..wire.kombu_message import addressee
from ..wire.request import LightRequest
from .events import Events
from .queue_selector import CELERY, QueueSelector, Turn

if TYPE_CHECKING:
    from ...engine import Engine

#: Seconds that one wait for work lasts at most; then the queues are looked at anyway.
_WAIT_S = 1.0
#: Seconds until a share that was other workers' is looked at again.
_WITHHELD_S = 0.05
#: Seconds that a few jobs have to themselves before anything else is done, and the bytes of their messages at most.
_AFTER_YOU_S, _FEW_BYTES = 0.001, 65_536
#: Messages that one claim takes, at most, unless a batch may be larger: some 5 ms of the server's time, for which
#: results would wait.
_AT_ONCE = 256


class Claiming:
    """Waits for work and claims it. Claim thread."""

    engine: "Engine"

    def __init__(
        self,
        consumer: Any,
        leases: Leases,
        doorbell: ArrivalWatcher,
        hub: on_hub.HubCalls,
        events: Events,
        unusual: CeleryBridge,
        retry: RedisRetry,
        *,
        queues: Callable[[], Sequence[Queue]],
        max_bytes: int,
    ) -> None:
        """Claim from `queues` for `consumer`'s batch tasks, `max_bytes` at once at most."""
        self._consumer = consumer
        self._tasks: dict[str, Any] = consumer.batch_tasks
        self._leases = leases
        self._doorbell = doorbell
        self._hub = hub
        self._events = events
        self._unusual = unusual
        self._retry = retry
        self._queues = queues
        self._max_bytes = max_bytes
        self._at_once = max([_AT_ONCE, *(task.options.max_batch_size for task in self._tasks.values())])
        self._turns = QueueSelector()
        #: Whether the last claim took all there was, and that was little: see `_look_again`.
        self._stepped_aside = False

    def claim(self, rooms: Mapping[str, Room]) -> list[Job]:
        """See `Front.claim`."""
        all_taken = self._stepped_aside
        if all_taken:
            self._look_again()
        room_with_celery = self._unusual.room
        rooms = {**rooms, CELERY: room_with_celery} if room_with_celery else rooms
        turn = self._turns.next(self._queues(), rooms, self._max_bytes)
        if not turn.queues or self.engine.hung:
            self._wait_until_freed()
            return []
        if not all_taken:
            if claims := self._take(turn):
                return self._sort_out(claims)
            if turn.left_out or self._leases.withheld:
                self._wait_until_freed()
                return []
        rang = not turn.left_out and self._retry.once(lambda: self._doorbell.wait(turn.queues, _WAIT_S))
        # Meanwhile there can only be more room.
        return self._sort_out(self._take(turn)) if rang and not self.engine.hung else []

    def _take(self, turn: Turn) -> Sequence[Claim]:
        room = min(sum(turn.limits), self._at_once)
        claims: Sequence[Claim] = (
            self._retry.until_stopped(lambda: self._leases.claim(turn.queues, room, turn.max_bytes, turn.limits)) or ()
        )
        few = 2 * len(claims) <= room and sum(len(claim.message) for claim in claims) <= _FEW_BYTES
        if claims and few and not self._leases.withheld:
            self._stepped_aside = True
            self._hub.hush()
        elif claims:
            self._retry.once(lambda: self._doorbell.wake_next_worker(more=self._leases.withheld > 0))
        return claims

    def _look_again(self) -> None:
        """Let the few jobs that were all there was get to the device first: then announce them, and pass on the token.

        Whatever our threads do meanwhile competes with those jobs for the GIL.
        """
        self._stepped_aside = False
        self.engine.freed.wait(_AFTER_YOU_S)
        self._hub.wake()
        self._retry.once(lambda: self._doorbell.wake_next_worker(more=False))

    def _wait_until_freed(self) -> None:
        self.engine.freed.wait(_WITHHELD_S)
        self._unusual.forget_lost()

    def _sort_out(self, claims: Sequence[Claim]) -> list[Job]:
        if not claims:
            return []
        now, jobs, others, brought = time.monotonic(), [], [], set()
        revoked, tasks, server_time = state.revoked, self._unlimited(), self._leases.server_time
        for claim in claims:
            call = decode(claim.message, self._consumer.accept)
            if call is None or call.headers.task not in tasks or (revoked and call.headers.id in revoked):
                others.append(claim)
            else:
                jobs.append(to_job(claim, call, self._request(claim, call), now, server_time))
                brought.add((claim.queue.name, call.headers.task))
        for claim in others:
            brought.add((claim.queue.name, CELERY))
            task, _ = addressee(claim.message)
            if task in self._tasks:  # it joins that task's jobs when Celery is through with it
                brought.add((claim.queue.name, task))
        self._turns.brought(brought)
        if jobs:
            self._announce([job.reply for job in jobs])
        if others:
            self._unusual.hand_over(others)
        return jobs

    def _unlimited(self) -> Set[str]:
        """Return the batch tasks without a rate limit; Celery's own buckets see to the others."""
        if self._consumer.disable_rate_limits:
            return self._tasks.keys()
        return {name for name in self._tasks if not self._consumer.task_buckets[name]}

    def _request(self, claim: Claim, call: FastCall) -> LightRequest:
        headers = call.headers
        name = headers.shadow or headers.task
        task = self._tasks[headers.task]
        return LightRequest(claim, headers, task, self._unusual.request, headers.id, name, call.in_chord)

    def _announce(self, requests: Sequence[LightRequest]) -> None:
        if signals.task_received.receivers:  # before any other signal of theirs
            for request in requests:
                signals.task_received.send(sender=self._consumer, request=request)
        self._hub.call(self._received, requests)

    def _received(self, requests: Sequence[LightRequest]) -> None:
        on_hub.reserved(requests)
        self._events.received(requests)


def to_job(claim: Claim, call: FastCall, request: LightRequest, now: float, server_time: float) -> Job:
    """Return the job of an ordinary call.

    `now` is on the engine's clock, in seconds; the caller's times are held against `server_time`, seconds since the
    epoch: this machine's clock may be off, too.
    """
    headers = call.headers
    enqueued_at = headers.batchery_enqueued_at
    return Job(
        headers.id,
        headers.task,
        call.args,
        call.kwargs,
        request,
        # A caller whose clock is ahead of the server's has just sent it, as far as we can know.
        now if enqueued_at is None else now - max(0.0, server_time - enqueued_at),
        claim.seq,
        call.priority,
        None if call.expires_at is None else now + call.expires_at - server_time,
        # A compressed message is larger once it is held.
        size=max(len(claim.message), call.size),
    )
