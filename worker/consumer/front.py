"""The engine's front at a Celery worker: claims from Redis, answers through Celery."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis
from celery import signals
from celery.app.trace import task_has_custom
from celery.utils.functional import maybe_list
from celery.worker import state

from ...batchers import Batch, BatchFailed, Job, Outcome
from ..broker import Claim, Doorbell, Leases, Queue, Settlement
from . import hub as on_hub
from .events import Events
from .message import Ordinary, decode
from .messages import LeaseChannel, to_kombu, to_request
from .replay import make_replay, trace
from .request import CurrentRequest, LightRequest
from .store import ResultStore

if TYPE_CHECKING:
    from ..engine import Engine

logger = logging.getLogger(__name__)

#: Seconds that one wait for work lasts at most; then the queues are looked at anyway.
_WAIT_S = 1.0
#: Seconds until a share that was other workers' is looked at again.
_WITHHELD_S = 0.05
#: Seconds that a lone job's batch has to itself before the queues are looked at again.
_AFTER_YOU_S = 0.001
#: Seconds between tries while Redis does not answer: doubled each time, up to the second.
_BACKOFF_S = (0.1, 2.0)


class BrokerFront:
    """See `engine.Front` for what each method is called for, and by which thread."""

    engine: "Engine"

    def __init__(
        self,
        consumer: Any,
        leases: Leases,
        doorbell: Doorbell,
        store: ResultStore,
        hub: on_hub.HubCalls,
        *,
        queues: Callable[[], Sequence[Queue]],
        max_bytes: tuple[int, int],
    ) -> None:
        """Serve `consumer`'s batch tasks; `max_bytes` are those of one claim, and of all that is held."""
        self._consumer = consumer
        self._tasks: dict[str, Any] = consumer.batch_tasks
        self._hooked = {name for name, task in self._tasks.items() if _has_hooks(task)}
        self._replays = {name: make_replay(task) for name, task in self._tasks.items()}
        self._leases = leases
        self._doorbell = doorbell
        self._store = store
        self._hub = hub
        self._events = Events(consumer)
        self._queues = queues
        self._max_bytes = max_bytes
        self._channel = LeaseChannel(self.acknowledge, self._requeue)
        self._acks: deque[Claim] = deque()
        self._returns: deque[str] = deque()
        #: Tags of claims that Celery's own machinery has in hand.
        self._with_celery: set[str] = set()
        self._stopped = threading.Event()
        #: Set whenever something we held has left.
        self._freed = threading.Event()
        self._turn = 0
        #: Whether the last claim took all there was: the doorbell, which looks again, is asked first then.
        self._emptied = False
        #: Names of tasks whose messages were left to other workers.
        self._left: set[str] = set()

    # -- Claiming ----------------------------------------------------------------------------------------------------

    def claim(self, room: int) -> list[Job]:
        """See `Front.claim`."""
        room -= len(self._with_celery) - len(state.scheduled_requests)
        most = min(self._max_bytes[0], self._max_bytes[1] - self._leases.held_bytes)
        queues = self._in_turn()
        if room <= 0 or most <= 0 or not queues or self.engine.hung:
            self._wait_until_freed()
            return []
        if not self._emptied:
            claims = self._persist(lambda: self._leases.claim(queues, room, most), until_done=True)
            if claims:
                self._emptied = len(claims) < room
                self._persist(lambda: self._doorbell.pass_on(more=self._leases.withheld > 0))
                return self._sort_out(claims)
        emptied, self._emptied = self._emptied, False
        if emptied:
            # What we just claimed is on its way to the device: our threads must not compete with it for the GIL.
            self._freed.clear()
            self._freed.wait(_AFTER_YOU_S)
        if self._leases.withheld and not emptied:
            self._wait_until_freed()
        else:
            self._persist(lambda: self._doorbell.wait(queues, _WAIT_S))
        return []

    def _wait_until_freed(self) -> None:
        self._freed.clear()
        self._freed.wait(_WITHHELD_S)
        # A lease that was lost is acknowledged by nobody.
        self._with_celery -= {tag for tag in tuple(self._with_celery) if self._leases.find(tag) is None}

    def _in_turn(self) -> Sequence[Queue]:
        queues = list(self._queues())
        self._turn += 1
        split = self._turn % len(queues) if queues else 0
        return queues[split:] + queues[:split]

    def _sort_out(self, claims: Sequence[Claim]) -> list[Job]:
        now, jobs, others = time.monotonic(), [], []
        revoked, tasks = state.revoked, self._unlimited()
        for claim in claims:
            call = decode(claim.message, self._consumer.accept)
            if call is None or call.headers.task not in tasks or (revoked and call.headers.id in revoked):
                others.append(claim)
            else:
                jobs.append(self._job(claim, call, now))
        if jobs:
            requests = [job.reply for job in jobs]
            if signals.task_received.receivers:  # before any other signal of theirs
                for request in requests:
                    signals.task_received.send(sender=self._consumer, request=request)
            self._hub.call(self._received, requests)
        if others:
            self._with_celery.update(claim.tag for claim in others)
            self._hub.call(self._deliver, others, soon=True)
        return jobs

    def _unlimited(self) -> Set[str]:
        """Return the batch tasks without a rate limit; Celery's own buckets see to the others."""
        if self._consumer.disable_rate_limits:
            return self._tasks.keys()
        return {name for name in self._tasks if not self._consumer.task_buckets[name]}

    def _job(self, claim: Claim, call: Ordinary, now: float) -> Job:
        headers = call.headers
        server_time = self._leases.server_time
        enqueued_at = headers.batchery_enqueued_at
        name = headers.shadow or headers.task
        request = LightRequest(claim, headers, self._tasks[headers.task], self._request, headers.id, name)
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
        )

    def interrupt(self) -> None:
        """See `Front.interrupt`."""
        self._stopped.set()
        self._doorbell.interrupted = True
        self._freed.set()

    # -- Celery's own way, on the hub --------------------------------------------------------------------------------

    def _deliver(self, claims: Sequence[Claim]) -> None:
        """Hand messages to Celery's own handler, as its consumer would."""
        for claim in claims:
            if not self._leases.holds(claim):
                continue
            message = None
            try:
                message = to_kombu(claim, self._channel, self._consumer.accept)
                self._consumer.handle_message(message)
            except Exception as exc:
                self._give_up(claim, message, exc)

    def _give_up(self, claim: Claim, message: Any, error: Exception) -> None:
        """Drop a message that Celery cannot make sense of; whoever waits for it, if it says who, learns why."""
        logger.error("This is no message of Celery's, it is dropped: %r", claim.message[:200], exc_info=error)
        task_id = (message.headers if message else {}).get("id")
        if task_id:
            self._consumer.app.backend.mark_as_failure(task_id, error)
        self.acknowledge(claim.tag)

    def connection_lost(self) -> None:
        """Give back what Celery drops when it reconnects: what waits for its ETA or its rate limit. On the hub."""
        in_pool = {request.message.delivery_tag for request in _with_message(state.reserved_requests)}
        self._returns += (tag for tag in tuple(self._with_celery) if tag not in in_pool)
        self.engine.poke()

    def take(self, request: Any) -> None:
        """Let a request of Celery's own join the waiting jobs. On the hub."""
        claim = self._leases.find(request.message.delivery_tag)
        if claim is None:  # our lease was lost while it waited for its ETA: it runs elsewhere
            on_hub.gone([request])
            return
        self._with_celery.discard(claim.tag)
        request.claim = claim
        deadline = None if request.expires is None else time.monotonic() + request.expires.timestamp() - time.time()
        args, kwargs = request.args, request.kwargs
        job = Job(request.id, request.task.name, args, kwargs, request, time.monotonic(), claim.seq, _priority(request))
        job.deadline = deadline
        self.engine.submit([job])

    def leave_to_others(self, request: Any) -> None:
        """Let go of a message whose task is served elsewhere: any worker may have it once its lease is over. Hub.

        Given back at once, it would come back at once.
        """
        tag = request.message.delivery_tag
        self._with_celery.discard(tag)
        claim = self._leases.find(tag)
        if claim is not None:
            self._leases.forget([claim])
        on_hub.gone([request])
        if request.task.name not in self._left:
            self._left.add(request.task.name)
            logger.error(
                "A call of %s was sent to a queue of this worker, which does not serve that task. Such calls wait here "
                "for a worker that does, each time for one lease: send them to another queue.",
                request.task.name,
            )

    def _request(self, claim: Claim) -> Any:
        message = to_kombu(claim, self._channel, self._consumer.accept)
        return to_request(message, self._consumer.app.tasks[message.headers["task"]], self._consumer)

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message of Celery's own, with the next settle. Any thread."""
        self._with_celery.discard(tag)
        claim = self._leases.find(tag)
        if claim is not None:
            self._acks.append(claim)
            self.engine.poke()

    def _requeue(self, tag: str) -> None:
        self._with_celery.discard(tag)
        claim = self._leases.find(tag)
        if claim is not None:
            self._persist(lambda: self._leases.give_back([claim]), until_done=True)

    def _received(self, requests: Sequence[LightRequest]) -> None:
        on_hub.reserved(requests)
        self._events.received(requests)

    # -- Running -----------------------------------------------------------------------------------------------------

    @contextmanager
    def current(self, job: Job) -> Iterator[None]:
        """See `Front.current`: `self.request` and `self.retry` work in `preprocess`."""
        stack = self._tasks[job.task].request_stack
        stack.push(CurrentRequest(job.reply))
        try:
            yield
        finally:
            stack.pop()

    def still_wanted(self, jobs: list[Job]) -> list[Job]:
        """See `Front.still_wanted`."""
        now, revoked = time.monotonic(), state.revoked
        wanted = []
        for job in jobs:
            expired = job.deadline is not None and job.deadline <= now
            if expired or (revoked and job.id in revoked) or _revoked_by_stamp(job.reply):
                self._hub.call(self._withdraw, job)
            elif self._leases.holds(job.reply.claim):
                wanted.append(job)
            else:
                self._hub.call(on_hub.gone, [job.reply])
        return wanted

    def _withdraw(self, job: Job) -> None:
        """Let Celery announce and store that a job was revoked or has expired. On the hub."""
        request = _full(job.reply)
        if request.revoked():
            on_hub.gone([job.reply])
        else:  # by Celery's clock it has not expired yet
            job.deadline = None
            self.engine.submit([job])

    def started(self, batch: Batch) -> None:
        """See `Front.started`."""
        self._hub.call(self._mark_started, [job.reply for job in batch.jobs], time.time(), time.monotonic())

    def _mark_started(self, requests: Sequence[Any], now: float, monotonic_now: float) -> None:
        light = [request for request in requests if isinstance(request, LightRequest)]
        for request in light:
            request.time_start = now
        on_hub.accepted(light)
        self._events.started(light)
        for request in requests:
            if not isinstance(request, LightRequest):
                request.on_accepted(os.getpid(), monotonic_now)

    # -- Settling ----------------------------------------------------------------------------------------------------

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Front.settle`."""
        candidates = [outcome for outcome in outcomes if self._is_ordinary(outcome)]
        self._store.encode(candidates)
        ordinary = [outcome for outcome in candidates if outcome.error is None]
        acks = self._take_acks()
        if ordinary or acks:
            self._settle_ordinary(ordinary, acks)
        for _ in range(len(self._returns)):
            self._requeue(self._returns.popleft())
        done = {id(outcome) for outcome in ordinary if outcome.error is None}
        if len(done) < len(outcomes):
            for outcome in outcomes:
                if id(outcome) not in done:
                    self._tell_celery(outcome)
        self._freed.set()

    def _take_acks(self) -> list[Settlement]:
        return [Settlement(self._acks.popleft()) for _ in range(len(self._acks))]

    def _is_ordinary(self, outcome: Outcome) -> bool:
        """Whether nothing has to be done but to store and announce a success."""
        if outcome.error is not None or outcome.job.task in self._hooked:
            return False
        if signals.task_success.receivers or signals.task_prerun.receivers or signals.task_postrun.receivers:
            return False
        return isinstance(outcome.job.reply, LightRequest)

    def _settle_ordinary(self, outcomes: Sequence[Outcome], acks: Sequence[Settlement]) -> None:
        try:
            answered = self._persist(lambda: self._store.settle(outcomes, acks), until_done=True)
        except Exception:
            logger.exception("%d results could not be stored.", len(outcomes))
            answered = None
        if answered is None:
            # Refreshed no more: they run again, here or elsewhere, when their leases are over.
            self._leases.forget([*(outcome.job.reply.claim for outcome in outcomes), *(ack.claim for ack in acks)])
            answered = [False] * len(outcomes)
        stored = [(outcome, ours) for outcome, ours in zip(outcomes, answered, strict=True) if outcome.error is None]
        self._hub.call(self._succeeded, stored)

    def _succeeded(self, pairs: Sequence[tuple[Outcome, bool]]) -> None:
        self._events.succeeded([outcome for outcome, answered in pairs if answered])
        on_hub.gone([outcome.job.reply for outcome, _ in pairs])

    def _tell_celery(self, outcome: Outcome) -> None:
        """Let Celery's own tracer store and announce an outcome, and its request acknowledge the message."""
        reply = outcome.job.reply
        claim = reply.claim
        if outcome.error is not None and not isinstance(outcome.error, Exception):
            outcome.error = BatchFailed(f"The model raised {outcome.error!r}.")
        try:
            if self._leases.holds(claim) and self._leases.still_held(claim):
                answer = trace(self._replays[outcome.job.task], _full(reply), outcome, self._consumer.app)
                self._hub.call(_full(reply).on_success, answer, soon=True)
        except Exception as exc:
            logger.exception("Celery could not take in the outcome of %s.", reply)
            self._fail(reply, exc)
        if isinstance(reply, LightRequest):
            self._hub.call(on_hub.gone, [reply])

    def _fail(self, reply: Any, error: Exception) -> None:
        """End a job whose outcome Celery's tracer cannot take in; left alone it would run again and again."""
        try:
            self._consumer.app.backend.mark_as_failure(reply.id, error)
        except Exception:
            logger.exception("Nor could that be stored: %s runs again when its lease is over.", reply)
            self._leases.forget([reply.claim])
        else:
            self.acknowledge(reply.claim.tag)

    def give_back(self, jobs: Sequence[Job]) -> None:
        """See `Front.give_back`."""
        self._persist(lambda: self._leases.give_back(job.reply.claim for job in jobs))
        self._hub.call(on_hub.gone, [job.reply for job in jobs])

    def release_waiting(self) -> None:
        """Give back all but what runs: the device hangs, other workers shall have the rest. Lease thread."""
        running = {job.reply.claim.tag for job in self.engine.running}
        self._leases.give_back(claim for claim in self._leases.held() if claim.tag not in running)

    def broken(self, error: Exception) -> None:  # noqa: ARG002 - the engine has logged it
        """See `Front.broken`."""
        self.interrupt()
        # Celery's loop looks at this on every turn, and shuts the worker down with it as the exit code.
        state.should_stop = os.EX_SOFTWARE
        self._hub.call(lambda: None, soon=True)

    def close(self) -> None:
        """Acknowledge what is left to acknowledge, give back the rest, and leave. The engine has stopped."""
        self._hub.run()
        acks = self._take_acks()
        try:
            self._store.settle([], acks)
            self._leases.leave()
        except redis.RedisError as exc:
            logger.warning("Leases could not be given back, they run out by themselves: %s", exc)
        self._doorbell.close()

    # -- When Redis does not answer ----------------------------------------------------------------------------------

    def _persist(self, action: Callable[[], Any], *, until_done: bool = False) -> Any:
        """Do `action`, again and again if Redis fails; None if it was given up because the worker stops.

        Without `until_done` it is tried once, and failing costs one wait.
        """
        pause, longest = _BACKOFF_S
        while True:
            try:
                return action()
            except redis.RedisError as exc:
                logger.warning("Redis: %s. Trying again in %.1f s.", exc, pause)
            if self._stopped.wait(pause) or not until_done:
                return None
            pause = min(2 * pause, longest)


def _with_message(requests: Iterable[Any]) -> list[Any]:
    """Return the requests that Celery's own machinery has in hand."""
    return [request for request in requests if not isinstance(request, LightRequest)]


def _priority(request: Any) -> int:
    """Return a request's priority as kombu reads it: from 0 to 9, 0 for what is no number."""
    try:
        return max(0, min(int(request.delivery_info["priority"]), 9))
    except (TypeError, ValueError, KeyError):
        return 0


def _revoked_by_stamp(request: Any) -> bool:
    """Whether one of a request's stamps was revoked, as Celery's `Request.revoked` finds it."""
    if not state.revoked_stamps or isinstance(request, LightRequest):  # what is stamped is never light
        return False
    stamps = request.message.headers.get("stamps") or {}
    revoked = ((name, values) for name, values in state.revoked_stamps.items() if name in stamps)
    return any(set(maybe_list(stamps[name])) & set(maybe_list(values)) for name, values in revoked)


def _full(request: Any) -> Any:
    return request.full if isinstance(request, LightRequest) else request


def _has_hooks(task: Any) -> bool:
    """Whether the task's class wants Celery to call it around each success."""
    return any(task_has_custom(task, hook) for hook in ("before_start", "on_success", "after_return"))
