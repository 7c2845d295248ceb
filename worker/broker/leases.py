"""The leases that one worker holds on messages. Each method is one atomic script for each queue.

1. A message is in its queue or under a lease, never nowhere.
2. Only the holder of the lease stores a result, and stores it together with the acknowledgement.
3. A lease ends when its holder settles or gives back, or when it runs out; then any worker may put the message back.
"""

import os
import secrets
import socket
import threading
from collections.abc import Iterable, Sequence
from operator import attrgetter

import redis

from .. import tuning
from .buffer import Buffer
from .claiming import Claimer
from .giving_back import give_back, give_back_orphans
from .held import Claim, HeldClaims, by_queue
from .keys import Queue
from .scripts import Scripts
from .settling import ResultRetention, Settled, Settlement, Settler


class Leases(HeldClaims):
    """The leases of one worker. Any thread may call any method."""

    def __init__(self, client: "redis.Redis", *, lease_s: float) -> None:
        """Hold leases of `lease_s` seconds on the messages of `client`'s server and db."""
        super().__init__()
        #: Tells workers apart: host and process for people, the rest because process ids are used again.
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        #: Set when something is buffered: somebody should call `flush`.
        self.has_buffered = threading.Event()
        self._lease_s = lease_s
        self._scripts = Scripts(client)
        self._claimer = Claimer(self._scripts, self, lease_s=lease_s)
        self._settler = Settler(self._scripts, self)
        self._to_give_back: Buffer[Claim] = Buffer()
        self._queues: dict[str, Queue] = {}

    @property
    def withheld(self) -> int:
        """Messages that the last claim left to other workers."""
        return self._claimer.withheld

    @property
    def server_time(self) -> float:
        """Redis TIME of the last claim, in seconds since the epoch."""
        return self._claimer.server_time

    def claim(
        self, queues: Sequence[Queue], limit: int, max_bytes: int, limits: Sequence[int] | None = None
    ) -> list[Claim]:
        """Claim `limit` messages and `max_bytes` at most, but one message whatever its size; never waits.

        `limits` bounds the messages of each of `queues`; None bounds each by `limit`. The highest priority comes first,
        then the first of `queues`, then the oldest message of a queue.
        """
        self._queues.update({queue.name: queue for queue in queues})
        return self._claimer.claim(queues, limit, max_bytes, limits)

    def settle(self, settlements: Sequence[Settlement], retention: ResultRetention) -> list[Settled]:
        """Store results and acknowledge, in one round trip for each queue; return what became of each settlement.

        Buffered acknowledgements are sent along. All of it may be repeated after an error.
        """
        return self._settler.settle(settlements, retention)

    def acknowledge(self, claim: Claim) -> None:
        """Buffer an acknowledgement, which the next `settle` or `flush` sends. Never blocks."""
        self._settler.acknowledge(claim)
        self.has_buffered.set()

    def give_back_soon(self, claim: Claim) -> None:
        """Buffer a claim, which the next `flush` gives back. Never blocks."""
        self._to_give_back.put(claim)
        self.has_buffered.set()

    def flush(self) -> None:
        """Send what is buffered.

        Raises:
            redis.RedisError: the server refused or is away; the buffers keep what was not sent.
        """
        self.has_buffered.clear()
        self._settler.flush()
        with self._to_give_back.taken() as claims:
            self.give_back(claims)

    def give_back(self, claims: Iterable[Claim]) -> None:
        """Put messages back to the front of their queues, in claim order."""
        claims = list(claims)
        for group in by_queue(claims, attrgetter("queue.name")):
            give_back(self._scripts, group[0].queue, [claim.tag for claim in group])
        self.forget(claims)

    def sweep(self, most: int = tuning.SWEEP_MAX_JOBS) -> int:
        """Give back orphans, messages whose lease has run out, whoever held it. Return how many."""
        return sum(give_back_orphans(self._scripts, queue, most=most) for queue in list(self._queues.values()))

    def refresh(self, queues: Sequence[Queue]) -> None:
        """Refresh everything we hold, and our place among the live workers of `queues`."""
        groups = {claims[0].queue.name: claims for claims in by_queue(self.held(), attrgetter("queue.name"))}
        for queue in {
            queue.name: queue for queue in [*(claims[0].queue for claims in groups.values()), *queues]
        }.values():
            claims = groups.get(queue.name, [])
            tags = [claim.tag for claim in claims]
            keys, args = [queue.index, queue.workers], [self._lease_s, self.worker, *tags]
            if self._scripts.run("refresh", keys, args) < len(tags):
                scores = self._scripts.client.zmscore(queue.index, tags)
                self.forget(claim for claim, score in zip(claims, scores, strict=True) if score is None)

    def still_held(self, claim: Claim) -> bool:
        """Ask the server whether a claim is still ours."""
        return self._scripts.client.zscore(claim.queue.index, claim.tag) is not None

    def leave(self) -> None:
        """Send what is buffered, give back whatever is still held, and no longer count as a live worker."""
        self.flush()
        self.give_back(self.held())
        for queue in self._queues.values():
            self._scripts.client.zrem(queue.workers, self.worker)
