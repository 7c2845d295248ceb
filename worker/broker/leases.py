"""The lease that one worker has on the messages that it holds. Each step is one atomic script for each queue.

1. A message is in its queue or under a lease, never nowhere.
2. Only the holder of the lease acknowledges, together with the result. Without a lease a result is stored only where
   there is none.
3. A lease covers everything that its worker holds of a queue. It ends when the worker leaves, or when it runs out; then
   any worker may put the messages back.
4. A worker stays among the workers of a queue, where others look for leases that are over, for as long as it holds
   anything there.
"""

import functools
import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import TypeVar

import redis

from .. import tuning
from . import orphans
from .claims import Claim, ResultRetention, Settled, Settlement
from .held import HeldClaims
from .keys import Queue
from .lua import Scripts
from .shares import Shares

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Leases(HeldClaims):
    """The lease of one worker, of `lease_s` seconds, at the server and in the db of `client`. Any thread."""

    def __init__(self, client: "redis.Redis", *, lease_s: float) -> None:
        super().__init__(lease_s=lease_s)
        #: What the tags of this worker begin with, before the colon.
        self.tag_worker = secrets.token_hex(8)
        #: Tells workers apart: host and process for people, the rest because process ids are used again.
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{self.tag_worker}"
        #: Messages that the last claim left to other workers.
        self.withheld = 0
        #: Redis TIME of the last claim, in seconds since the epoch.
        self.server_time = 0.0
        #: Our part in what the workers of a queue share.
        self.shares = Shares(self.worker)
        self.scripts = self._scripts = Scripts(
            client, self.shares, worker=self.worker, tag_worker=self.tag_worker, lease_s=lease_s
        )
        #: Raises the error with which the server refuses writes to a queue now, if it does.
        self.check_server = self._scripts.check_server
        self._next_seq = 0
        #: Claims whose answer is not known: one that is under way, and those whose answer was lost.
        self._unanswered: list[tuple[Sequence[Queue], range]] = []
        self._has_left = False

    def still_held(self, claims: Sequence[Claim]) -> list[bool]:
        """Ask the server which claims are ours, once for each queue."""
        held: dict[str, bool] = {}
        for group in _by_queue(claims, attrgetter("queue.name")):
            tags = [claim.tag for claim in group]
            held.update(zip(tags, self._scripts.held(group[0].queue, tags), strict=True))
        return [held[claim.tag] for claim in claims]

    def fetch(self, claims: Sequence[Claim]) -> list[bytes | None]:
        """Return the bytes of messages of one queue that are ours, from the server; None for each that is lost."""
        return self._scripts.fetch(claims[0].queue, [claim.tag for claim in claims])

    def claim(
        self, queues: Sequence[Queue], limit: int, max_bytes: int, limits: Sequence[int] | None = None
    ) -> list[Claim]:
        """Claim `limit` messages and `max_bytes` at most, but one message whatever its size; never waits.

        `limits` bounds the messages of each of `queues`; None bounds each by `limit`. The highest priority comes first,
        then the first of `queues`, then the oldest message of a queue; but a sixteenth is for each lower priority. If
        our lease has run out, it is refreshed first.
        """
        orphans.give_back_unanswered(self._scripts, self._unanswered, self.tag_worker)
        self._queues.update({queue.name: queue for queue in queues})
        seqs = range(self._next_seq, self._next_seq + limit)
        self._unanswered.append((queues, seqs))
        # Numbers are used once even if the answer is lost, because two claims must not share tags.
        self._next_seq = seqs.stop
        claim = functools.partial(
            self._scripts.claim, queues, seqs, held=self, limits=limits or [limit] * len(queues), max_bytes=max_bytes
        )
        answer = claim()
        if answer is None and not self._has_left:
            self.refresh(queues)
            answer = claim()
        self.server_time, self.withheld, lists = answer or (self.server_time, 0, [])
        self._take(lists)
        self._unanswered.pop()
        return [claim for claims in lists for claim in claims]

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
                self._forget(item.claim for item, answer in pairs if answer is not still_ours)
        return [settled[settlement.claim.tag] for settlement in settlements]

    def flush(self) -> None:
        """Send what is buffered.

        Raises:
            redis.RedisError: the server is away or refuses; nothing is lost, and the next `flush` sends it.
        """
        self.has_buffered.clear()
        self.shares.flush(self._scripts.client, self._queues)
        self.settle([], ResultRetention(db=self._scripts.db))
        for rejected, buffer in self._to_give_back.items():
            with _taken(buffer) as claims:
                self.give_back(claims, rejected=rejected)
        self.give_back(self._due())

    def give_back(self, claims: Iterable[Claim], *, died: bool = False, rejected: bool = False) -> None:
        """Put messages back to the front of their queues, in claim order; with `died` as those of a dead worker.

        What its task has `rejected` goes to the end, as redelivered.
        """
        claims = list(claims)
        for group in _by_queue(claims, attrgetter("queue.name")):
            self._scripts.give_back(group[0].queue, [claim.tag for claim in group], died=died, rejected=rejected)
        self._forget(claims)

    def refresh(self, queues: Iterable[Queue]) -> list[Queue]:
        """Refresh our lease in `queues`, and wherever we hold messages; return where it was refreshed.

        Where it had run out, other workers may have taken messages of ours, so we look for each that we hold.
        """
        refreshed = [*{*queues, *self._queues_of_held(), *(claim.queue for claim in self._kept())}]
        for queue in self._scripts.refresh(refreshed):
            if self._held_of[queue.name]:
                claims = [claim for claim in self.held() if claim.queue == queue]
                tags = self._scripts.tags(queue, self.tag_worker)
                lost = [claim for claim in claims if claim.tag not in tags]
                self._forget(lost)
                logger.warning(
                    "Our lease on %s had run out. Others have %d of %d jobs.", queue.name, len(lost), len(claims)
                )
        return refreshed

    def sweep(self, turn_s: float = 0.0) -> int:
        """Give back messages of workers whose lease has run out; return how many: 0 if there are none any more.

        It does nothing if another worker has done so within `turn_s` seconds.
        """
        queues = list(self._queues.values())
        return orphans.sweep(self._scripts, queues) if orphans.takes_turn(self._scripts, queues, turn_s) else 0

    def mend(self) -> None:
        """Give back strays: messages that the server holds for us, or for nobody, and of which nobody knows."""
        next_seq = min([self._next_seq, *(seqs.start for _, seqs in [*self._unanswered])])
        orphans.mend(self._scripts, list(self._queues.values()), self.tag_worker, next_seq, self._knows)

    def leave(self, running: Collection[str] = ()) -> None:
        """Send what is buffered, give back whatever is still held, and no longer count as a live worker.

        The tags in `running` are not given back, because their jobs may be why the worker leaves: when its lease runs
        out, they count as orphans that were running.
        """
        self._has_left = True
        self.flush()
        self.give_back(claim for claim in (*self.held(), *self._kept()) if claim.tag not in running)
        orphans.give_back_unanswered(self._scripts, self._unanswered, self.tag_worker)
        if not any(tag in self._held for tag in running):
            orphans.leave(self._scripts, self.worker, list(self._queues.values()))
        self.shares.forget(self._scripts.client, self._queues)


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
