"""Claims: messages that are ours for a time, and what is to become of them."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from .keys import Queue


class HeldAs(enum.IntEnum):
    """What a worker holds a message as. Only jobs count in the fair share, because nothing else can run now."""

    #: A job of the engine, or on its way there.
    JOB = 0
    #: A call of a batch task that Celery has in hand, such as one with a rate limit.
    BRIDGED = 1
    #: A call of a plain task that Celery has in hand, and one that waits or runs in its pool.
    PLAIN = 2
    POOLED = 3
    #: A call that Celery's timer keeps until its ETA.
    ETA = 4
    #: A message of which the worker keeps only the tag, because its bytes do not fit: they are at the server.
    PARKED = 5


class Claim(msgspec.Struct, eq=False, gc=False):
    """A message that is ours for the time of its lease."""

    tag: str
    queue: Queue
    message: bytes
    #: Position in this worker's claims.
    seq: int
    #: The list that it was taken from.
    priority: int = 0
    #: Bytes that it takes here, or would take if it were not parked. Only `HeldClaims` changes it, and the next field.
    size: int = 0
    held_as: HeldAs = HeldAs.JOB


class Lease(NamedTuple):
    """The lease of one worker on all messages that it holds of one queue."""

    #: Host and process, for people, and what its tags begin with, after the last colon.
    worker: str
    #: Redis TIME at which it ends, in seconds since the epoch.
    end: float

    @property
    def tag_worker(self) -> str:
        """What the tags of its messages begin with, before their own colon."""
        return self.worker.rpartition(":")[2]


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
    #: Added to its chord, unless it completes the chord.
    part: ChordPart | None = None


class Settled(enum.IntEnum):
    """What became of a settlement."""

    #: The lease was lost, and there is an answer already.
    LOST = 0
    DONE = 1
    #: Not settled and still ours: this result completes a chord, so Celery must store it and send the callback.
    NEEDS_CELERY = 2
    #: The lease was lost, but nobody else had answered, so the result is stored. Nothing is acknowledged.
    LATE = 3


class ResultRetention(NamedTuple):
    """Where results are kept, and for how many seconds; 0 seconds means for ever."""

    db: int = 0
    expires_s: int = 0
    chord_in_order: bool = True
    chord_expires_s: int = 0
    #: For what Celery saved of a chord of groups.
    group_expires_s: int = 0
