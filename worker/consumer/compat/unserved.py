"""Calls of batch tasks that this worker does not serve, in a queue that it claims from."""

import logging

from celery.worker.request import Request

from ...broker import Claim, Leases
from . import worker_state

logger = logging.getLogger(__name__)


class Unserved:
    """Lets any worker have such a call after the length of a lease. If it went back, it would return at once."""

    def __init__(self, leases: Leases) -> None:
        """Let go what `leases` hold of such calls."""
        self._leases = leases
        #: Names of tasks whose messages were left.
        self._left: set[str] = set()

    def leave(self, request: Request, claim: Claim | None) -> None:
        """Leave a call to others, and log it the first time that this happens to its task. On the hub's thread."""
        if claim is not None:
            self._leases.let_go([claim])
        worker_state.forget([request])
        name = request.task.name
        if name not in self._left:
            self._left.add(name)
            logger.error(
                "A call of %s was sent to a queue of this worker, which does not serve that task. Send such calls to "
                "another queue, because each of them waits here for one lease before another worker may take it.",
                name,
            )
