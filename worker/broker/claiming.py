"""Claiming: takes messages out of their queues and puts them under a lease."""

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from .giving_back import give_back
from .held import Claim, HeldClaims
from .keys import Queue
from .scripts import Scripts


class Claimer:
    """Claims messages for one worker. One thread at a time."""

    def __init__(self, scripts: Scripts, held: HeldClaims, *, lease_s: float) -> None:
        """Add what is claimed to `held`, under leases of `lease_s` seconds."""
        self._scripts = scripts
        self._held = held
        self._lease_s = lease_s
        self._tag_prefix = f"{secrets.token_hex(8)}:"
        self._next_seq = 0
        #: First sequence number, limit and queues of claims whose answer was lost with the connection.
        self._unacknowledged_claims: list[tuple[int, int, Sequence[Queue]]] = []
        #: Messages that the last claim left to other workers.
        self.withheld = 0
        #: Redis TIME of the last claim, in seconds since the epoch.
        self.server_time = 0.0

    def claim(self, queues: Sequence[Queue], limit: int, max_bytes: int, limits: Sequence[int] | None) -> list[Claim]:
        """Claim as `Leases.claim` describes."""
        self._give_back_unacknowledged()
        first = self._next_seq
        # These numbers are used up even if the answer is lost: a second claim must not meet the first one's tags.
        self._next_seq += limit
        try:
            reply = self._call_script(
                queues, first_seq=first, limit=limit, max_bytes=max_bytes, limits=limits or [limit] * len(queues)
            )
        except (redis.ConnectionError, redis.TimeoutError):
            self._unacknowledged_claims.append((first, limit, queues))
            raise
        return self._take_in(reply, queues, first)

    def _call_script(
        self, queues: Sequence[Queue], *, first_seq: int, limit: int, max_bytes: int, limits: Sequence[int]
    ) -> list[Any]:
        priorities = queues[0].priorities
        keys = [key for queue in queues for key in (queue.unacked, queue.index, queue.workers)]
        keys += [queue.lists[step] for step in range(len(priorities)) for queue in queues]
        args: list[Any] = [self._tag_prefix, first_seq, self._lease_s, limit, max_bytes, len(queues)]
        for queue, queue_limit in zip(queues, limits, strict=True):
            args += (queue.envelope_end, self._held.count(queue), queue_limit)
        reply: list[Any] = self._scripts.run("claim", keys, [*args, *priorities])
        return reply

    def _take_in(self, reply: list[Any], queues: Sequence[Queue], first_seq: int) -> list[Claim]:
        self.server_time, self.withheld = float(reply[0]), int(reply[1])
        lists = [(queue, priority) for priority in queues[0].priorities for queue in queues]
        counts, messages = reply[2 : 2 + len(lists)], reply[2 + len(lists) :]
        claims: list[Claim] = []
        for (queue, priority), count in zip(lists, counts, strict=True):
            if count:
                taken = [
                    Claim("%s%012d.%d" % (self._tag_prefix, seq, priority), queue, message, seq)  # noqa: UP031 - faster
                    for seq, message in enumerate(messages[len(claims) : len(claims) + count], first_seq + len(claims))
                ]
                self._held.add(queue, taken)
                claims += taken
        return claims

    def _give_back_unacknowledged(self) -> None:
        """Give back what a claim may have taken although its answer was lost."""
        while self._unacknowledged_claims:
            first, limit, queues = self._unacknowledged_claims[-1]
            for queue in queues:
                give_back(self._scripts, queue, list(self._tags(queue, range(first, first + limit))))
            self._unacknowledged_claims.pop()

    def _tags(self, queue: Queue, sequence: range) -> Iterator[str]:
        for seq in sequence:
            for priority in queue.priorities:
                yield f"{self._tag_prefix}{seq:012d}.{priority}"
