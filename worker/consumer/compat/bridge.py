"""The Celery bridge: messages go to Celery's own handler, and come back as jobs, as acknowledgements or as failures."""

import logging
import time
from collections.abc import Collection, Sequence
from functools import partial
from weakref import WeakValueDictionary

import msgspec
from celery.exceptions import InvalidTaskError
from celery.worker.request import Request

from ....batchers import Job, JobState, without_text
from ... import tuning
from ...broker import Claim
from ..wire.compression import NoRoom
from ..wire.decode import lost_of
from ..wire.kombu_message import LeaseChannel, LeasedMessage, addressee, to_kombu, to_request
from ..wire.request import full_request
from . import worker_state
from .admission import Admission
from .context import WorkerContext
from .in_hand import IN_HAND, InHand
from .mishaps import Mishaps
from .postpone import passes
from .unserved import Unserved

logger = logging.getLogger(__name__)


class CeleryBridge(Mishaps):
    """Hands messages over to Celery, and takes back what becomes of them.

    These are the messages of plain tasks, and of batch tasks those that are no fast calls.
    """

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(context)
        self._intake = context.intake
        self._channel = LeaseChannel(self.acknowledge, partial(self.give_back, rejected=True))
        self.in_hand = InHand(context.leases)
        self.admission = Admission(context)
        #: The messages that somebody still refers to, by tag.
        self._messages: WeakValueDictionary[str, LeasedMessage] = WeakValueDictionary()
        self._unserved = Unserved(context.leases)

    @property
    def leaves(self) -> bool:
        """Whether the worker stops, so that nothing is to begin; it gives back everything that is left at the end."""
        return self._intake.scheduler.draining or worker_state.is_cold_shutdown()

    def hand_over(self, claims: Sequence[Claim]) -> Collection[tuple[str, str]]:
        """Hand messages to Celery's own handler, as many as it may have; the others go back, or wait for their ETA.

        Return what their queues delivered: pairs of a queue's name and a task. Claim thread.
        """
        admitted, delivered = self.admission.admit(claims)
        self._hand_over(admitted)
        return delivered

    def hand_over_due(self) -> None:
        """Hand over the messages that were parked and are due now. Claim thread."""
        self._hand_over(self.admission.fetch_due())

    def _hand_over(self, claims: Sequence[Claim]) -> None:
        if claims:
            self._hub.call(self._deliver, claims, soon=True)

    def _deliver(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            # Its lease may have been lost, or it may have been given back meanwhile.
            if self.leaves or not self._leases.holds(claim) or claim.held_as not in IN_HAND:
                continue
            room = self.admission.room_for(claim)
            try:
                message = to_kombu(claim, self._channel, self._consumer.accept, room=room)
                self.admission.decompressed(claim, len(message.body))
                self._messages[claim.tag] = message
                if not self.dead_letters.give_up(claim, message):
                    self._consumer.handle_message(message)
            except NoRoom:
                self.admission.parking.park(claim, tuning.PARK_AGAIN_S)
            except Exception as exc:
                told = without_text(exc)
                # A signal may have stopped Celery's pool. Celery stores that a call is revoked, for example.
                if self.leaves or passes(exc):
                    logger.warning("Celery could not take a message, which goes back to its queue: %s", told)
                    self.give_back(claim.tag)
                    continue
                task, task_id, _ = addressee(claim.message)
                logger.error("A message is none of Celery's and is dropped: id %r, task %r, %s", task_id, task, told)
                logger.debug("The dropped message begins with %r.", claim.message[:200], exc_info=exc)
                self.refuse(claim.tag, InvalidTaskError(f"a message that cannot be read: {exc!r}"))

    @property
    def owned(self) -> set[str]:
        """The tags of messages that are parked, or that Celery may acknowledge, because somebody refers to them."""
        return {*self._messages.keys(), *self.admission.parking.tags}

    def build_request(self, claim: Claim) -> Request:
        """Return Celery's own request for a claim."""
        return to_request(to_kombu(claim, self._channel, self._consumer.accept), self._consumer)

    def enter_pool(self, request: Request) -> bool:
        """Note that a plain task goes to Celery's pool; return False if it may not run here any more."""
        if self.leaves or request.message.channel is not self._channel:  # a broadcast message, which has no lease
            return not self.leaves
        ours = self.in_hand.enter_pool(request.message.delivery_tag)
        if not ours:
            worker_state.forget([request])
        return ours

    def take(self, request: Request) -> None:
        """Let a request that Celery has accepted join the waiting jobs of its task. On the hub's thread."""
        claim = self.in_hand.take_back(request.message.delivery_tag)
        if claim is None:  # the lease was lost while the request waited for its ETA, so the job runs elsewhere
            worker_state.forget([request])
            return
        try:
            job = _to_job(claim, request)
        except Exception as exc:
            logger.error("%s[%s] cannot be served: %s", request.name, request.id, without_text(exc))
            worker_state.forget([request])
            self.refuse(claim.tag, exc)
            return
        request.claim = claim
        self._submit(job)

    def leave_to_others(self, request: Request) -> None:
        """Let any worker have the message of a task that this worker does not serve, after the length of a lease."""
        self._unserved.leave(request, self.in_hand.take_back(request.message.delivery_tag))

    def withdraw(self, job: Job) -> None:
        """Let Celery announce and store that a job was revoked or has expired."""
        try:
            revoked = full_request(job.reply).revoked()
        except Exception as exc:
            logger.error("Celery could not revoke %s[%s]: %s", job.task, job.id, without_text(exc))
            self.give_up(job.reply, exc)
            return
        if revoked:
            worker_state.forget([job.reply])
        else:  # by Celery's clock it has not expired; a new job, because the engine may still be dropping the old one
            self._submit(msgspec.structs.replace(job, deadline=None, state=JobState.NEW))

    def _submit(self, job: Job) -> None:
        if not self._intake.submit([job]):
            self._leases.give_back_soon(job.reply.claim)
            worker_state.forget([job.reply])

    def connection_lost(self) -> None:
        """Give back what Celery drops when it reconnects: requests that wait for their ETA or their rate limit."""
        for tag in self.in_hand.waiting:
            self.give_back(tag)

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message, if it is still ours."""
        if (claim := self.in_hand.take_back(tag)) is not None:
            self._leases.acknowledge(claim)

    def give_back(self, tag: str, *, rejected: bool = False) -> None:
        """Give a message back, if it is still ours."""
        if (claim := self.in_hand.take_back(tag)) is not None:
            self._leases.give_back_soon(claim, rejected=rejected)


def _to_job(claim: Claim, request: Request) -> Job:
    """Return the job of a request of Celery's own.

    Raises:
        InvalidTaskError: the request cannot be a job, which Celery has not checked.
    """
    args, kwargs = request.args, request.kwargs
    if not isinstance(request.id, str):
        raise InvalidTaskError(f"a task's id is a text, not {request.id!r:.100}")
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise InvalidTaskError(f"arguments are a list and an object, not {args!r:.100} and {kwargs!r:.100}")
    now = time.monotonic()
    job = Job(request.id, request.task.name, args, kwargs, reply=request, enqueued_at=now, seq=claim.seq)
    job.priority, job.size = _priority(request), len(claim.message)
    info = request.message.delivery_info or {}
    job.redelivered = bool(info.get("redelivered"))
    job.lost, job.deaths, job.lone_deaths = lost_of(info.get("batchery_lost"))
    job.deadline = None if request.expires is None else now + request.expires.timestamp() - time.time()
    return job


def _priority(request: Request) -> int:
    """Return a request's priority as kombu reads it: from 0 to 9, and 0 for what is no number."""
    try:
        return max(0, min(int(request.delivery_info["priority"]), 9))
    except (TypeError, ValueError, OverflowError, KeyError):
        return 0
