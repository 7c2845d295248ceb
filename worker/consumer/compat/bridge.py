"""Celery's own way: messages that are handed to its handler, and what becomes of them."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery.exceptions import InvalidTaskError
from celery.worker import state

from ....batchers import Job
from ....configs import TaskOptions
from ...broker import Claim, Leases, Settlement
from ...broker.retry import RedisRetry
from ...engine import Room
from ..wire.kombu_message import LeaseChannel, addressee, to_kombu, to_request
from ..wire.request import LightRequest
from . import hub as on_hub

if TYPE_CHECKING:
    from ...engine import Engine

logger = logging.getLogger(__name__)


class CeleryBridge:
    """What Celery's own machinery has in hand: unusual messages, and those of plain tasks."""

    engine: "Engine"

    def __init__(
        self, consumer: Any, leases: Leases, hub: on_hub.HubCalls, retry: RedisRetry, *, held_max_bytes: int
    ) -> None:
        """Hand messages to `consumer`, on its hub's thread."""
        self._consumer = consumer
        self._leases = leases
        self._hub = hub
        self._retry = retry
        self._channel = LeaseChannel(self.acknowledge, self._requeue)
        #: Tags of the claims that Celery has in hand.
        self._tags: set[str] = set()
        self._acks: deque[Claim] = deque()
        self._returns: deque[str] = deque()
        widest = max((task.options.max_waiting for task in consumer.batch_tasks.values()), default=0)
        #: Jobs that Celery may have in hand: as many as wait of any batch task.
        self._most = widest or TaskOptions().max_waiting
        self._held_max_bytes = held_max_bytes
        #: Names of tasks whose messages were left to other workers.
        self._left: set[str] = set()

    @property
    def room(self) -> Room | None:
        """How much more may be handed to Celery: of bytes, what the batch tasks leave; ETAs are not counted as jobs."""
        room = Room(
            self._most - len(self._tags) + len(state.scheduled_requests),
            self._held_max_bytes - self._leases.held_bytes,
        )
        return room if room.jobs > 0 and room.bytes >= self._held_max_bytes // 8 else None

    def forget_lost(self) -> None:
        """Count no message whose lease was lost: nobody acknowledges it."""
        self._tags -= {tag for tag in tuple(self._tags) if self._leases.find(tag) is None}

    # -- Into Celery's hands -----------------------------------------------------------------------------------------

    def hand_over(self, claims: Sequence[Claim]) -> None:
        """Hand messages to Celery's own handler. Any thread."""
        self._tags.update(claim.tag for claim in claims)
        self._hub.call(self._deliver, claims, soon=True)

    def _deliver(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            if not self._leases.holds(claim):
                continue
            try:
                self._consumer.handle_message(to_kombu(claim, self._channel, self._consumer.accept))
            except Exception as exc:
                logger.error("This is no message of Celery's, it is dropped: %r", claim.message[:200], exc_info=exc)
                self.refuse(claim.tag, InvalidTaskError(f"a message that cannot be read: {exc!r}"))

    def request(self, claim: Claim) -> Any:
        """Return Celery's own request for a claim."""
        message = to_kombu(claim, self._channel, self._consumer.accept)
        return to_request(message, self._consumer.app.tasks[message.headers["task"]], self._consumer)

    # -- Out of Celery's hands: jobs, to the engine ------------------------------------------------------------------

    def take(self, request: Any) -> None:
        """Let a request of Celery's own join the waiting jobs. On the hub."""
        claim = self._leases.find(request.message.delivery_tag)
        if claim is None:  # our lease was lost while it waited for its ETA: it runs elsewhere
            on_hub.gone([request])
            return
        try:
            job = _to_job(claim, request)
        except Exception as exc:
            logger.error("%r cannot be served: %s", request, exc)
            on_hub.gone([request])
            self.refuse(claim.tag, exc)
            return
        self._tags.discard(claim.tag)
        request.claim = claim
        self.engine.submit([job])

    def leave_to_others(self, request: Any) -> None:
        """Let go of a message whose task is served elsewhere: any worker may have it once its lease is over. Hub.

        Given back at once, it would come back at once.
        """
        tag = request.message.delivery_tag
        self._tags.discard(tag)
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

    # -- Out of Celery's hands: all others ---------------------------------------------------------------------------

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message, with the next settle. Any thread."""
        self._tags.discard(tag)
        claim = self._leases.find(tag)
        if claim is not None:
            self._acks.append(claim)
            self.engine.poke()

    def take_acks(self) -> list[Settlement]:
        """Take the acknowledgements in line."""
        return [Settlement(self._acks.popleft()) for _ in range(len(self._acks))]

    def refuse(self, tag: str, error: Exception) -> None:
        """Drop a message that Celery can make nothing of; whoever waits for it, if it says who, learns why. Hub."""
        claim = self._leases.find(tag)
        if claim is None:
            return
        _, task_id = addressee(claim.message)
        if task_id is None:
            self.acknowledge(tag)
        else:
            self.fail(task_id, claim, error)

    def fail(self, task_id: str, claim: Claim, error: Exception) -> None:
        """End a job that Celery's own code cannot take in; left alone it would run again and again."""
        try:
            self._consumer.app.backend.mark_as_failure(task_id, error)
        except (TypeError, ValueError):
            logger.exception("No result can be stored for %r, ever: it is dropped.", task_id)
            self.acknowledge(claim.tag)
        except Exception:
            logger.exception("Its failure could not be stored: %s runs again when its lease is over.", task_id)
            self._leases.forget([claim])
        else:
            self.acknowledge(claim.tag)

    def connection_lost(self) -> None:
        """Give back what Celery drops when it reconnects: what waits for its ETA or its rate limit. On the hub."""
        in_pool = {
            request.message.delivery_tag for request in state.reserved_requests if not isinstance(request, LightRequest)
        }
        self._returns += (tag for tag in tuple(self._tags) if tag not in in_pool)
        self.engine.poke()

    def give_back_dropped(self) -> None:
        """Give back what `connection_lost` has found. Settle thread."""
        for _ in range(len(self._returns)):
            self._requeue(self._returns.popleft())

    def _requeue(self, tag: str) -> None:
        self._tags.discard(tag)
        claim = self._leases.find(tag)
        if claim is not None:
            self._retry.until_stopped(lambda: self._leases.give_back([claim]))


def _to_job(claim: Claim, request: Any) -> Job:
    """Return the job of a request of Celery's own.

    Raises:
        InvalidTaskError: it cannot be one, and Celery has not looked.
    """
    args, kwargs = request.args, request.kwargs
    if not isinstance(request.id, str):
        raise InvalidTaskError(f"a task's id is a text, not {request.id!r:.100}")
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise InvalidTaskError(f"arguments are a list and an object, not {args!r:.100} and {kwargs!r:.100}")
    now = time.monotonic()
    job = Job(request.id, request.task.name, args, kwargs, request, now, claim.seq, _priority(request))
    job.deadline = None if request.expires is None else now + request.expires.timestamp() - time.time()
    job.size = len(claim.message)
    return job


def _priority(request: Any) -> int:
    """Return a request's priority as kombu reads it: from 0 to 9, 0 for what is no number."""
    try:
        return max(0, min(int(request.delivery_info["priority"]), 9))
    except (TypeError, ValueError, OverflowError, KeyError):
        return 0
