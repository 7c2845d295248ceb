"""Settling: stores results and acknowledges messages in one step, and buffers acknowledgements until then."""

import enum
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from .. import tuning
from .buffer import Buffer
from .held import Claim, HeldClaims, by_queue
from .scripts import Scripts


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

    #: The lease was lost: another worker answers this job.
    LOST = 0
    DONE = 1
    #: Not settled and still ours: this result completes a chord, so Celery must store it and send the callback.
    NEEDS_CELERY = 2


#: By the script's reply: an enum's own look-up costs more than everything else that is done with a reply.
_ANSWERS = tuple(Settled)


class ResultRetention(NamedTuple):
    """Where results are kept, and for how many seconds; 0 seconds means for ever."""

    db: int = 0
    expires_s: int = 0
    chord_in_order: bool = True
    chord_expires_s: int = 0
    #: For what Celery saved of a chord of groups.
    group_expires_s: int = 0


class Settler:
    """Settles claims for one worker. Any thread."""

    def __init__(self, scripts: Scripts, held: HeldClaims) -> None:
        """Take what is settled out of `held`."""
        self._scripts = scripts
        self._held = held
        self._acknowledgements: Buffer[Settlement] = Buffer()

    def acknowledge(self, claim: Claim) -> None:
        """Acknowledge a claim with the next settle."""
        self._acknowledgements.put(Settlement(claim))

    def flush(self) -> None:
        """Send the buffered acknowledgements."""
        self.settle([], ResultRetention(db=self._scripts.db))

    def settle(self, settlements: Sequence[Settlement], retention: ResultRetention) -> list[Settled]:
        """Settle as `Leases.settle` describes."""
        # After an error an acknowledgement may be sent twice: the server ignores the second one.
        with self._acknowledgements.taken() as acknowledgements:
            settled = self._send([*settlements, *acknowledgements], retention)
        return [settled[settlement.claim.tag] for settlement in settlements]

    def _send(self, settlements: Sequence[Settlement], retention: ResultRetention) -> dict[str, Settled]:
        settled: dict[str, Settled] = {}
        needs_celery = Settled.NEEDS_CELERY
        for group in by_queue(settlements, attrgetter("claim.queue.name")):
            for chunk in _chunks(group):
                reply = self._call_script(chunk, retention)
                answers = [_ANSWERS[answer] for answer in reply]
                settled.update(zip([item.claim.tag for item in chunk], answers, strict=True))
                self._held.forget(
                    item.claim for item, answer in zip(chunk, answers, strict=True) if answer is not needs_celery
                )
        return settled

    def _call_script(self, chunk: Sequence[Settlement], retention: ResultRetention) -> list[int]:
        queue = chunk[0].claim.queue
        keys: list[str] = [queue.unacked, queue.index]
        args: list[Any] = [self._scripts.db, retention.db, retention.expires_s, len(chunk)]
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
        reply: list[int] = self._scripts.run("settle", keys, args)
        return reply


def _chunks(settlements: Sequence[Settlement]) -> Iterator[list[Settlement]]:
    """Cut settlements of one queue into what one script may take."""
    chunk: list[Settlement] = []
    chunk_size = 0
    for settlement in settlements:
        size = len(settlement.result) + (len(settlement.part.result) if settlement.part else 0)
        chunk_size += size
        if chunk and (chunk_size > tuning.SETTLE_MAX_BYTES or len(chunk) == tuning.SETTLE_MAX_JOBS):
            yield chunk
            chunk, chunk_size = [], size
        chunk.append(settlement)
    yield chunk
