"""The leases that one worker holds on messages. Each step is one atomic script for each queue.

1. A message is in its queue or under a lease, never nowhere.
2. Only the holder of the lease stores a result, and stores it together with the acknowledgement.
3. A lease ends when its holder settles or gives back, or when it runs out; then any worker may put the message back.
"""

import os
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import TypeVar, cast

import redis

from .. import tuning
from .claims import Claim, ResultRetention, Settled, Settlement
from .held import HeldClaims
from .keys import Queue
from .lua import Scripts

T = TypeVar("T")


class Leases:
    """The leases of one worker, of `lease_s` seconds, at the server and in the db of `client`. Any thread."""

    def __init__(self, client: "redis.Redis", *, lease_s: float) -> None:
        #: Tells workers apart: host and process for people, the rest because process ids are used again.
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        #: What is ours as far as this worker knows.
        self.held_claims = HeldClaims()
        #: Messages that the last claim left to other workers.
        self.withheld = 0
        #: Redis TIME of the last claim, in seconds since the epoch.
        self.server_time = 0.0
        #: Set when something was buffered that `flush` should send.
        self.has_buffered = threading.Event()
        self._scripts = Scripts(client, worker=self.worker, lease_s=lease_s)
        #: What the tags of this worker begin with, before the colon.
        self.tag_worker = self._scripts.tag_worker
        self._queues: dict[str, Queue] = {}
        self._next_seq = 0
        self._drains = False
        #: Claims whose answer was lost with the connection.
        self._unacknowledged_claims: list[tuple[Sequence[Queue], range]] = []
        self._acknowledgements: deque[Settlement] = deque()
        self._to_give_back: deque[Claim] = deque()

    def holds(self, claim: Claim) -> bool:
        """Return whether a claim is ours as far as this worker knows."""
        return self.held_claims.find(claim.tag) is not None

    def still_held(self, claim: Claim) -> bool:
        """Ask the server whether a claim is ours."""
        return self._scripts.client.zscore(claim.queue.index, claim.tag) is not None

    def fetch(self, claims: Sequence[Claim]) -> list[bytes | None]:
        """Return the bytes of messages of one queue that are ours, from the server; None for each that is lost."""
        queue = claims[0].queue
        tags = [claim.tag for claim in claims]
        envelopes = cast("list[bytes | None]", self._scripts.client.hmget(queue.unacked, tags))
        end = -len(queue.envelope_end.encode())
        return [envelope and envelope[1:end] for envelope in envelopes]

    def find(self, tag: str) -> Claim | None:
        """Return the claim of that tag, if it is ours."""
        return self.held_claims.find(tag)

    def held(self) -> list[Claim]:
        """Return every claim that is ours, in claim order."""
        return self.held_claims.in_order()

    def forget(self, claims: Iterable[Claim]) -> None:
        """Stop holding these. They are not refreshed, so the leases of those that were not settled run out."""
        self.held_claims.remove(claims)

    def claim(
        self, queues: Sequence[Queue], limit: int, max_bytes: int, limits: Sequence[int] | None = None
    ) -> list[Claim]:
        """Claim `limit` messages and `max_bytes` at most, but one message whatever its size; never waits.

        `limits` bounds the messages of each of `queues`; None bounds each by `limit`. The highest priority comes first,
        then the first of `queues`, then the oldest message of a queue. But a sixteenth is for each lower priority.
        """
        while self._unacknowledged_claims:
            self._scripts.give_back_claimed(*self._unacknowledged_claims[-1])
            self._unacknowledged_claims.pop()
        self._queues.update({queue.name: queue for queue in queues})
        seqs = range(self._next_seq, self._next_seq + limit)
        # Numbers are used once even if the answer is lost, because two claims must not share tags.
        self._next_seq = seqs.stop
        try:
            self.server_time, self.withheld, claims = self._scripts.claim(
                queues, seqs, max_bytes=max_bytes, limits=limits or [limit] * len(queues), held=self.held_claims
            )
        except (redis.ConnectionError, redis.TimeoutError):
            self._unacknowledged_claims.append((queues, seqs))
            raise
        self.held_claims.add(claims)
        return claims

    def settle(self, settlements: Sequence[Settlement], retention: ResultRetention) -> list[Settled]:
        """Store results and acknowledge, in one round trip for each queue; return what became of each settlement.

        Buffered acknowledgements are sent along. A settle that failed may be repeated: the server ignores what is
        settled already.
        """
        settled: dict[str, Settled] = {}
        still_ours = Settled.NEEDS_CELERY
        with _taken(self._acknowledgements) as acknowledgements:
            for chunk in _chunks([*settlements, *acknowledgements]):
                answers = self._scripts.settle(chunk, retention)
                settled.update(zip([item.claim.tag for item in chunk], answers, strict=True))
                pairs = zip(chunk, answers, strict=True)
                self.forget(item.claim for item, answer in pairs if answer is not still_ours)
        return [settled[settlement.claim.tag] for settlement in settlements]

    def acknowledge(self, claim: Claim) -> None:
        """Buffer an acknowledgement, which the next `settle` or `flush` sends. Never blocks."""
        self._acknowledgements.append(Settlement(claim))
        self.has_buffered.set()

    def give_back_soon(self, claim: Claim) -> None:
        """Buffer a claim, which the next `flush` gives back. Never blocks."""
        self._to_give_back.append(claim)
        self.has_buffered.set()

    def flush(self) -> None:
        """Send what is buffered.

        Raises:
            redis.RedisError: the server is away or refuses; nothing is lost, and the next `flush` sends it.
        """
        self.has_buffered.clear()
        if self._drains:
            self.leave_share()
        self.settle([], ResultRetention(db=self._scripts.db))
        with _taken(self._to_give_back) as claims:
            self.give_back(claims)

    def give_back(self, claims: Iterable[Claim]) -> None:
        """Put messages back to the front of their queues, in claim order."""
        claims = list(claims)
        for group in _by_queue(claims, attrgetter("queue.name")):
            self._scripts.give_back(group[0].queue, [claim.tag for claim in group])
        self.forget(claims)

    def leave_share(self) -> None:
        """Let other workers have this one's share until the next `refresh`."""
        for queue in list(self._queues.values()):
            self._scripts.leave_share(queue)

    def drain(self) -> None:
        """Let other workers have this one's share from the next `flush` on, because it claims no more. Never blocks."""
        self._drains = True
        self.has_buffered.set()

    def refresh(self, queues: Sequence[Queue]) -> None:
        """Refresh everything we hold, and our place among the live workers of `queues`."""
        held = {claims[0].queue: claims for claims in _by_queue(self.held(), attrgetter("queue.name"))}
        for queue in {*queues, *held}:
            claims = held.get(queue, [])
            tags = [claim.tag for claim in claims]
            if self._scripts.refresh(queue, tags, claims=not self._drains) < len(tags):
                scores = self._scripts.client.zmscore(queue.index, tags)
                self.forget(claim for claim, score in zip(claims, scores, strict=True) if score is None)

    def sweep(self, most: int = tuning.SWEEP_MAX_JOBS) -> int:
        """Give back orphans, messages whose lease has run out, whoever held it. Return how many."""
        return sum(self._scripts.give_back(queue, orphans=most) for queue in list(self._queues.values()))

    def leave(self, running: Collection[str] = ()) -> None:
        """Send what is buffered, give back whatever is still held, and no longer count as a live worker.

        The tags in `running` are not given back, because their jobs may be why the worker leaves: when their leases run
        out, they count as orphans that were running.
        """
        self.flush()
        self.give_back(claim for claim in self.held() if claim.tag not in running)
        self.leave_share()


@contextmanager
def _taken(buffer: deque[T]) -> Iterator[list[T]]:
    """Take everything out of a buffer in order to send it; put it back if that fails."""
    items: list[T] = []
    with suppress(IndexError):
        while True:
            items.append(buffer.popleft())
    try:
        yield items
    except BaseException:
        buffer.extend(items)
        raise


def _by_queue(items: Sequence[T], queue_name: Callable[[T], str]) -> Iterable[list[T]]:
    groups: dict[str, list[T]] = {}
    for name, item in zip(map(queue_name, items), items, strict=True):
        groups.setdefault(name, []).append(item)
    return groups.values()


def _chunks(settlements: Sequence[Settlement]) -> Iterator[list[Settlement]]:
    """Cut settlements into what one script may take: few enough, and of one queue."""
    for group in _by_queue(settlements, attrgetter("claim.queue.name")):
        chunk: list[Settlement] = []
        chunk_bytes = 0
        for settlement in group:
            size = len(settlement.result) + (len(settlement.part.result) if settlement.part else 0)
            chunk_bytes += size
            if chunk and (chunk_bytes > tuning.SETTLE_MAX_BYTES or len(chunk) == tuning.SETTLE_MAX_JOBS):
                yield chunk
                chunk, chunk_bytes = [], size
            chunk.append(settlement)
        yield chunk
