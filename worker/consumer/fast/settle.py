"""Settling: ordinary successes in bulk, everything else told to Celery's own tracer."""

import logging
from collections.abc import Sequence
from typing import Any

from celery import signals
from celery.app.trace import task_has_custom

from ....batchers import BatchFailed, Outcome
from ...broker import Leases, Settled, Settlement
from ...broker.retry import Persist
from ..compat import hub as on_hub
from ..compat.bridge import CeleryBridge
from ..compat.replay import make_replay, trace
from ..wire.request import LightRequest, full_request
from .events import Events
from .result_store import ResultStore

logger = logging.getLogger(__name__)


class Settling:
    """Stores outcomes and acknowledges their messages."""

    def __init__(
        self,
        consumer: Any,
        leases: Leases,
        store: ResultStore,
        hub: on_hub.HubCalls,
        events: Events,
        unusual: CeleryBridge,
        persist: Persist,
    ) -> None:
        """Settle the jobs of `consumer`'s batch tasks."""
        self._app = consumer.app
        self._hooked = {name for name, task in consumer.batch_tasks.items() if _has_hooks(task)}
        self._replays = {name: make_replay(task) for name, task in consumer.batch_tasks.items()}
        self._leases = leases
        self._store = store
        self._hub = hub
        self._events = events
        self._unusual = unusual
        self._persist = persist

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Front.settle`."""
        candidates = [] if _any_hears() else [outcome for outcome in outcomes if self._is_ordinary(outcome)]
        self._store.encode(candidates)
        ordinary = [outcome for outcome in candidates if outcome.error is None]
        acks = self._unusual.take_acks()
        left = self._settle_ordinary(ordinary, acks) if ordinary or acks else set()
        self._unusual.give_back_dropped()
        done = {id(outcome) for outcome in ordinary if outcome.error is None} - left
        if len(done) < len(outcomes):
            for outcome in outcomes:
                if id(outcome) not in done:
                    self._tell_celery(outcome)

    def acknowledge_rest(self) -> None:
        """Acknowledge what is still in line.

        Raises:
            redis.RedisError: the server is away.
        """
        self._store.settle([], self._unusual.take_acks())

    def _is_ordinary(self, outcome: Outcome) -> bool:
        """Whether nothing has to be done but to store and announce a success."""
        if outcome.error is not None or outcome.job.task in self._hooked:
            return False
        reply = outcome.job.reply
        return type(reply) is LightRequest and (not reply.in_chord or self._store.takes_parts)

    def _settle_ordinary(self, outcomes: Sequence[Outcome], acks: Sequence[Settlement]) -> set[int]:
        """Settle in bulk; return the ids of the outcomes that are left to Celery, as they complete a chord."""
        try:
            answered = self._persist(lambda: self._store.settle(outcomes, acks), until_done=True)
        except Exception:
            logger.exception("%d results could not be stored.", len(outcomes))
            answered = None
        if answered is None:
            # Refreshed no more: they run again, here or elsewhere, when their leases are over.
            self._leases.forget([*(outcome.job.reply.claim for outcome in outcomes), *(ack.claim for ack in acks)])
            answered = [Settled.LOST] * len(outcomes)
        answers = [pair for pair in zip(outcomes, answered, strict=True) if pair[0].error is None]
        gone = [(outcome, answer == Settled.DONE) for outcome, answer in answers if answer != Settled.NEEDS_CELERY]
        self._hub.call(self._succeeded, gone)
        return {id(outcome) for outcome, answer in answers if answer == Settled.NEEDS_CELERY}

    def _succeeded(self, pairs: Sequence[tuple[Outcome, bool]]) -> None:
        self._events.succeeded(pairs)
        on_hub.gone([outcome.job.reply for outcome, _ in pairs])

    def _tell_celery(self, outcome: Outcome) -> None:
        """Let Celery's own tracer store and announce an outcome, and its request acknowledge the message."""
        reply = outcome.job.reply
        claim = reply.claim
        if outcome.error is not None and not isinstance(outcome.error, Exception):
            outcome.error = BatchFailed(f"The model raised {outcome.error!r}.")
        if not self._leases.holds(claim) or not self._persist(lambda: self._leases.still_held(claim), until_done=True):
            self._hub.call(on_hub.gone, [reply])
            return
        try:
            if (
                outcome.error is None
            ):  # Celery would retry for 20 s to store one that is too large, and others would wait
                self._store.fits(outcome)
            request = full_request(reply)
            answer = trace(self._replays[outcome.job.task], request, outcome, self._app)
            self._hub.call(request.on_success, answer, soon=True)
        except Exception as exc:
            logger.exception("Celery could not take in the outcome of %s.", reply)
            self._unusual.fail(reply.id, claim, exc)
        if isinstance(reply, LightRequest):
            self._hub.call(on_hub.gone, [reply])


def _any_hears() -> bool:
    """Whether somebody wants a signal around each success."""
    return bool(signals.task_success.receivers or signals.task_prerun.receivers or signals.task_postrun.receivers)


def _has_hooks(task: Any) -> bool:
    """Whether the task's class wants Celery to call it around each success."""
    return any(task_has_custom(task, hook) for hook in ("before_start", "on_success", "after_return"))
