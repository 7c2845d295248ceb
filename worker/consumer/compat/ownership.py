"""Looks regularly for messages on which nobody works any more, and for threads that have died.

An exception, wherever it is thrown, must not leave a message claimed for ever, nor a worker that looks well and does
nothing. So the owner of each message is not trusted to give it up, but asked for: the engine's job table, or whatever
still refers to the kombu message that Celery was given, without which nobody can acknowledge it.
"""

import logging
from collections.abc import Callable

from celery.worker.request import Request

from ...broker import Claim
from . import worker_state
from .bridge import CeleryBridge
from .context import WorkerContext
from .worker_exit import end_worker

logger = logging.getLogger(__name__)


def forgetting_failures(take: Callable[[Request], object]) -> Callable[[Request], None]:
    """Let Celery forget a request that `take` fails to take: its state would keep it, as if somebody worked on it."""

    def try_to_take(request: Request) -> None:
        try:
            take(request)
        except Exception:
            worker_state.forget([request])
            raise

    return try_to_take


class Ownership:
    """Gives back what nobody owns, and ends a worker whose threads have died. On the hub's thread."""

    def __init__(self, context: WorkerContext, bridge: CeleryBridge, dead_thread: Callable[[], str | None]) -> None:
        """Let `dead_thread()` name a thread that has died, if there is one."""
        self._leases = context.leases
        self._intake = context.intake
        self._hub = context.hub
        self._bridge = bridge
        self._dead_thread = dead_thread
        #: Tags of messages without an owner at the last check.
        self._unowned: set[str] = set()

    def check(self) -> None:
        """Look once. A message that had no owner twice goes back, because once may be between two owners."""
        if (name := self._dead_thread()) is not None:
            logger.critical("The thread %s has died. This worker ends, so that its supervisor starts another.", name)
            end_worker(self._hub)
        held = self._leases.held()
        owned = self._bridge.owned
        # Asked afterwards, because messages go from Celery to the engine, and not back.
        owned.update([job.reply.claim.tag for job in self._intake.scheduler.jobs.copy()], self._leases.buffered)
        unowned = {claim.tag: claim for claim in held if claim.tag not in owned}
        lost = [claim for tag, claim in unowned.items() if tag in self._unowned]
        self._unowned = unowned.keys() - {claim.tag for claim in lost}
        if lost:
            self._give_back(lost)

    def _give_back(self, lost: list[Claim]) -> None:
        logger.error(
            "Nobody works on %d claimed messages any more, because of an error that stands further up. They go back.",
            len(lost),
        )
        for claim in lost:
            self._leases.give_back_soon(claim)
