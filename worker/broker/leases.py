"""Leases on messages: claiming, refreshing, settling, giving back. One method, one atomic script.

1. A message is in its queue or under a lease, never nowhere.
2. Only who holds the lease stores a result, and stores it with the acknowledgement.
3. A lease ends when we settle or give back, or when it runs out; then anybody may put the message back.

Every method may be called from any thread.
"""

import enum
import os
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import redis

from .client import largest_value, script
from .keys import Queue

#: Jobs that one settle script takes: far below what Lua can unpack, and a few ms of the server's time.
_SETTLE_CHUNK = 500
#: Bytes of results in one settle script, but one result whatever its size: a server closes the connection of whoever
#: sends more than 1 GB at once.
_SETTLE_BYTES = 32 * 1024 * 1024
#: Bytes of orphans that one sweep puts back: some 100 ms of the server's time.
_ORPHAN_BYTES = 32 * 1024 * 1024


class Claim(msgspec.Struct, eq=False, gc=False):
    """A message that is ours for the time of its lease."""

    tag: str
    queue: Queue
    message: bytes
    #: Position in this worker's claims.
    seq: int


class ChordPart(NamedTuple):
    """One of the results that a chord's callback waits for, as Celery keeps them."""

    #: The chord's keys: parts, added to its size, size, parts known, saved group, state.
    keys: Sequence[str]
    task_id: str
    #: Its place in the chord.
    place: str
    result: bytes


class Settlement(NamedTuple):
    """What to do with one claim: store `result` under `key` and acknowledge; only acknowledge where `key` is empty."""

    claim: Claim
    key: str = ""
    result: bytes = b""
    #: Added to its chord, if it does not complete it.
    part: ChordPart | None = None


class Settled(enum.IntEnum):
    """What became of a settlement."""

    #: The lease was lost: somebody else answers that one.
    LOST = 0
    DONE = 1
    #: It would complete a chord, whose callback is for Celery to call: it is still ours, and not settled.
    LEFT = 2


#: By the script's reply: an enum's own look-up costs more than all else that is done with it.
_ANSWERS = tuple(Settled)


class ResultRetention(NamedTuple):
    """Where results are kept, and for how long: in seconds, 0 is for ever."""

    db: int = 0
    expires_s: int = 0
    chord_in_order: bool = True
    chord_expires_s: int = 0
    #: What Celery saved of a chord of groups.
    group_expires_s: int = 0


class Leases:
    """The leases that one worker holds."""

    def __init__(self, client: "redis.Redis", *, lease_s: float) -> None:
        """Hold leases of `lease_s` seconds on the messages of `client`'s server and db."""
        self._pool = client.connection_pool
        self._own = threading.local()
        self._lease_s = lease_s
        #: Tells workers apart: host and process for people, the rest against a process id used again.
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._prefix = f"{secrets.token_hex(8)}:"
        self._scripts = {name: script(client, name) for name in ("claim", "settle", "give_back", "refresh")}
        self._lock = threading.Lock()
        self._held: dict[str, Claim] = {}
        self._held_of: dict[str, int] = {}
        self._held_bytes = 0
        self._queues: dict[str, Queue] = {}
        self._sequence = 0
        self._largest_value = 0
        #: First sequence number and queues of claims whose answer was lost with the connection.
        self._unheard: list[tuple[int, int, Sequence[Queue]]] = []
        #: Messages that the last claim left to other workers.
        self.withheld = 0
        #: Redis TIME of the last claim, in seconds since the epoch.
        self.server_time = 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes of the messages held."""
        return self._held_bytes

    def holds(self, claim: Claim) -> bool:
        """Whether a claim is still ours, as far as we have heard."""
        return claim.tag in self._held

    def find(self, tag: str) -> Claim | None:
        """Return the claim of that tag, if it is ours."""
        return self._held.get(tag)

    def held(self) -> list[Claim]:
        """Every claim that is ours, in claim order."""
        with self._lock:
            return sorted(self._held.values(), key=lambda claim: claim.seq)

    def claim(
        self, queues: Sequence[Queue], room: int, max_bytes: int, limits: Sequence[int] | None = None
    ) -> list[Claim]:
        """Claim at most `room` messages and `max_bytes`, but one message whatever its size; never waits.

        `limits` are messages of each of `queues`, at most; None: `room` of each. Highest priority first; among equals
        the first of `queues` first, and the oldest message of a queue first.
        """
        self._recover_unheard()
        first = self._sequence
        with self._lock:
            self._queues.update({queue.name: queue for queue in queues})
            mine = [self._held_of.get(queue.name, 0) for queue in queues]
        keys = [key for queue in queues for key in (queue.unacked, queue.index, queue.workers)]
        priorities = queues[0].priorities
        keys += [queue.lists[step] for step in range(len(priorities)) for queue in queues]
        limits = limits or [room] * len(queues)
        shares = [
            value
            for queue, count, limit in zip(queues, mine, limits, strict=True)
            for value in (queue.envelope_end, count, limit)
        ]
        args = [self._prefix, first, self._lease_s, room, max_bytes, len(queues), *shares, *priorities]
        # Whatever becomes of the answer, these numbers are used: a second claim must not meet the first one's tags.
        self._sequence += room
        try:
            reply = self._run("claim", keys=keys, args=args)
        except (redis.ConnectionError, redis.TimeoutError):
            self._unheard.append((first, room, queues))
            raise
        return self._take_in(reply, queues, first)

    def settle(self, settlements: Sequence[Settlement], retention: ResultRetention) -> list[Settled]:
        """Store results and acknowledge, in one round trip for each queue; return what became of each."""
        settled: dict[str, Settled] = {}
        left = Settled.LEFT
        by_queue: dict[str, list[Settlement]] = {}
        for settlement in settlements:
            by_queue.setdefault(settlement.claim.queue.name, []).append(settlement)
        for group in by_queue.values():
            for chunk in _chunks(group):
                try:
                    reply = self._run("settle", *_settle_arguments(chunk, self._db, retention))
                except redis.RedisError:
                    self._largest_value = 0  # it may have been lowered
                    raise
                answers = [_ANSWERS[answer] for answer in reply]
                settled.update(zip([item.claim.tag for item in chunk], answers, strict=True))
                self.forget(item.claim for item, answer in zip(chunk, answers, strict=True) if answer is not left)
        return [settled[settlement.claim.tag] for settlement in settlements]

    @property
    def largest_value(self) -> int:
        """Bytes of one result that the server takes, at most."""
        if not self._largest_value:
            self._largest_value = largest_value(self._client)
        return self._largest_value

    def give_back(self, claims: Iterable[Claim]) -> None:
        """Put messages back to the front of their queues, in claim order."""
        claims = list(claims)
        by_queue: dict[str, list[Claim]] = {}
        for claim in claims:
            by_queue.setdefault(claim.queue.name, []).append(claim)
        for group in by_queue.values():
            self._give_back(group[0].queue, "", [claim.tag for claim in group])
        self.forget(claims)

    def sweep(self, most: int = 200) -> int:
        """Put orphans back, messages whose lease has run out whosever it was; return how many."""
        return sum(self._give_back(queue, str(most), []) for queue in list(self._queues.values()))

    def refresh(self, queues: Sequence[Queue]) -> None:
        """Refresh everything we hold, and our place among the live workers of `queues`."""
        by_queue: dict[str, list[Claim]] = {queue.name: [] for queue in queues}
        known = {**self._queues, **{queue.name: queue for queue in queues}}
        for claim in self.held():
            by_queue.setdefault(claim.queue.name, []).append(claim)
        for name, claims in by_queue.items():
            queue = known[name]
            tags = [claim.tag for claim in claims]
            still = self._run("refresh", keys=[queue.index, queue.workers], args=[self._lease_s, self.worker, *tags])
            if still < len(tags):
                scores = self._client.zmscore(queue.index, tags)
                self.forget(claim for claim, score in zip(claims, scores, strict=True) if score is None)

    def still_held(self, claim: Claim) -> bool:
        """Ask the server whether a claim is still ours."""
        return self._client.zscore(claim.queue.index, claim.tag) is not None

    def leave(self) -> None:
        """Give back whatever is still held and no longer count as a live worker."""
        self.give_back(self.held())
        for queue in self._queues.values():
            self._client.zrem(queue.workers, self.worker)

    def forget(self, claims: Iterable[Claim]) -> None:
        """Hold these no longer: they are refreshed no more, and run out unless they were settled."""
        with self._lock:
            for claim in claims:
                if self._held.pop(claim.tag, None) is not None:
                    self._held_of[claim.queue.name] -= 1
                    self._held_bytes -= len(claim.message)

    @property
    def _db(self) -> int:
        return int(self._pool.connection_kwargs.get("db") or 0)

    @property
    def _client(self) -> "redis.Redis":
        """A connection of its own for each thread: taking one out of a pool costs a system call, and so the GIL."""
        client: redis.Redis | None = getattr(self._own, "client", None)
        if client is None:
            client = self._own.client = redis.Redis(connection_pool=self._pool, single_connection_client=True)
        return client

    def _run(self, name: str, keys: list[Any], args: list[Any]) -> Any:
        return self._scripts[name](keys=keys, args=args, client=self._client)

    def _take_in(self, reply: list[Any], queues: Sequence[Queue], first: int) -> list[Claim]:
        self.server_time, self.withheld = float(reply[0]), int(reply[1])
        steps = len(queues[0].priorities)
        messages = iter(reply[2 + steps * len(queues) :])
        claims: list[Claim] = []
        seq = first
        with self._lock:
            for place, count in enumerate(reply[2 : 2 + steps * len(queues)]):
                if not count:
                    continue
                queue, priority = queues[place % len(queues)], queues[0].priorities[place // len(queues)]
                self._held_of[queue.name] = self._held_of.get(queue.name, 0) + count
                for seq, message in zip(range(seq, seq + count), messages, strict=False):  # noqa: B020 - counts on
                    claim = Claim("%s%012d.%d" % (self._prefix, seq, priority), queue, message, seq)  # noqa: UP031
                    claims.append(claim)
                    self._held[claim.tag] = claim
                    self._held_bytes += len(message)
                seq += 1
        return claims

    def _recover_unheard(self) -> None:
        """Give back what a claim took whose answer we never heard."""
        while self._unheard:
            first, room, queues = self._unheard[-1]
            for queue in queues:
                tags = [
                    f"{self._prefix}{seq:012d}.{step}"
                    for seq in range(first, first + room)
                    for step in queue.priorities
                ]
                self._give_back(queue, "", tags)
            self._unheard.pop()

    def _give_back(self, queue: Queue, orphans: str, tags: list[str]) -> int:
        priorities = ",".join(map(str, queue.priorities))
        return int(
            self._run(
                "give_back",
                keys=[queue.unacked, queue.index, *queue.lists],
                args=[len(queue.envelope_end), priorities, orphans, _ORPHAN_BYTES, *tags],
            )
        )


def _chunks(settlements: Sequence[Settlement]) -> Iterator[list[Settlement]]:
    """Cut settlements into what one script may take."""
    chunk: list[Settlement] = []
    size = 0
    for settlement in settlements:
        its_size = len(settlement.result) + (len(settlement.part.result) if settlement.part else 0)
        size += its_size
        if chunk and (size > _SETTLE_BYTES or len(chunk) == _SETTLE_CHUNK):
            yield chunk
            chunk, size = [], its_size
        chunk.append(settlement)
    yield chunk


def _settle_arguments(chunk: Sequence[Settlement], db: int, retention: ResultRetention) -> tuple[list[Any], list[Any]]:
    """Return the keys and arguments of one settle script."""
    queue = chunk[0].claim.queue
    keys: list[str] = [queue.unacked, queue.index]
    args: list[Any] = [db, retention.db, retention.expires_s, len(chunk)]
    parts: list[Any] = []
    chords: dict[str, int] = {}
    chord_keys: list[str] = []
    for number, (claim, key, result, part) in enumerate(chunk, 1):
        keys.append(key or queue.unacked)
        args += (claim.tag, result)
        if part is not None:
            if part.keys[0] not in chords:
                chords[part.keys[0]] = len(chords) + 1
                chord_keys += part.keys
            parts += (number, chords[part.keys[0]], part.task_id, part.place, part.result)
    if parts:
        keys += chord_keys
        args += (int(retention.chord_in_order), retention.chord_expires_s, retention.group_expires_s, *parts)
    return keys, args
