"""The claims that Celery's own machinery has in hand: in its handler, its timer, its buckets or its pool."""

from collections.abc import Set
from functools import partial

from celery.worker.request import Request

from ...broker import Claim
from ..wire.kombu_message import LeaseChannel
from . import worker_state
from .context import WorkerContext


class InHand:
    """Knows these claims by their tags, and ends their leases when Celery says so. On the hub's thread, unless said."""

    def __init__(self, context: WorkerContext) -> None:
        self._leases = context.leases
        self._intake = context.intake
        self._channel = LeaseChannel(self.acknowledge, partial(self._give_back, rejected=True))
        #: Tags of the claims that Celery has in hand, and of those of them that its pool has.
        self._tags: set[str] = set()
        self._in_pool: set[str] = set()

    @property
    def leaves(self) -> bool:
        """Whether the worker stops, so that what has not begun is not to begin any more.

        Its leases are kept until the worker gives back everything that is left.
        """
        return self._intake.scheduler.draining or worker_state.is_cold_shutdown()

    @property
    def in_pool(self) -> Set[str]:
        """The tags of plain tasks that wait for a thread of Celery's pool, or run there. Any thread."""
        return self._in_pool.copy()

    def enter_pool(self, request: Request) -> bool:
        """Note that a plain task goes to Celery's pool; return False if it may not run here any more."""
        tag: str = request.message.delivery_tag
        if self.leaves or request.message.channel is not self._channel:  # a broadcast message, which has no lease
            return not self.leaves
        if self._leases.find(tag) is None:  # it runs elsewhere
            self._tags.discard(tag)
            worker_state.forget([request])
            return False
        self._in_pool.add(tag)
        return True

    def forget_lost(self) -> None:
        """Stop counting messages whose lease was lost, because nobody will acknowledge them. Any thread."""
        for tag in [tag for tag in self._tags.copy() if self._leases.find(tag) is None]:
            self._discard(tag)

    def connection_lost(self) -> None:
        """Give back what Celery drops when it reconnects: requests that wait for their ETA or their rate limit."""
        for tag in self._tags - self._in_pool:
            self._give_back(tag)

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message, if it is still ours. Any thread."""
        self._discard(tag)
        if (claim := self._leases.find(tag)) is not None:
            self._leases.acknowledge(claim)

    def _give_back(self, tag: str, *, rejected: bool = False) -> None:
        self._discard(tag)
        if (claim := self._leases.find(tag)) is not None:
            self._leases.give_back_soon(claim, rejected=rejected)

    def _take_back(self, request: Request) -> Claim | None:
        """Return the claim of a request that Celery no longer has in hand; None if its lease was lost."""
        tag: str = request.message.delivery_tag
        self._discard(tag)
        return self._leases.find(tag)

    def _discard(self, tag: str) -> None:
        self._tags.discard(tag)
        self._in_pool.discard(tag)
