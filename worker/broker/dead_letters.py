"""Dead letters: the messages of jobs that were given up, kept for a person to look at, to requeue or to drop.

`bury.lua` keeps them, each queue's by itself: no more than a number, bytes and an age.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import redis

from .keys import DEAD, Queue


class DeadLetter(msgspec.Struct, kw_only=True):
    """What is known of a job that was given up, without its message."""

    #: The task id, or what else tells the letter from others if the message has none.
    id: str
    queue: str = ""
    #: Name of the task, if the message tells it.
    task: str | None = None
    reason: str
    #: The worker that gave up.
    worker: str = ""
    #: Leases that ran out, and of these how many while user code worked on the job.
    lost: int = 0
    deaths: int = 0
    #: The priority of the list that the message came from.
    priority: int = 0
    #: When it was given up, in seconds since the epoch (Redis TIME).
    at: float = 0.0


class LetterLimits(NamedTuple):
    """How many dead letters of one queue are kept, how many bytes of them, and for how many seconds."""

    letters: int
    bytes: int
    age_s: int


_letter = msgspec.json.Decoder(DeadLetter)


class DeadLetters:
    """The dead letters of an app's queues."""

    def __init__(self, client: "redis.Redis", queue: Callable[[str], Queue]) -> None:
        """Find them at the server of `client`; `queue(name)` says where a queue keeps what."""
        self._client = client
        self._queue = queue

    def queues(self) -> list[str]:
        """Return the names of all queues that have dead letters. This looks at every key of the server."""
        start = self._queue("").prefix + DEAD
        pattern = re.sub(r"([\[\]*?\\])", r"\\\1", start) + "*"
        found: Iterator[Any] = self._client.scan_iter(pattern, count=1000)
        return sorted(key.decode()[len(start) :] for key in found)

    def letters(self, queue: str) -> list[DeadLetter]:
        """Return the dead letters of a queue, the oldest first."""
        keys = self._queue(queue)
        known: Any = self._client.hgetall(keys.dead)
        dated: Any = self._client.zrange(keys.dead_index, 0, -1, withscores=True)
        letters = []
        for letter_id, at in dated:
            if letter_id in known:  # it is gone if another one dropped it meanwhile
                letters.append(_letter.decode(known[letter_id]))
                letters[-1].at = float(at)
        return letters

    def message(self, letter: DeadLetter) -> bytes | None:
        """Return the message of a letter; None if it is gone."""
        message: Any = self._client.hget(self._queue(letter.queue).dead_messages, letter.id)
        return None if message is None else bytes(message)

    def requeue(self, letter: DeadLetter) -> bool:
        """Put a letter's message at the end of its queue, as if it had never been lost, in one step; False if gone."""
        return self._take(letter, requeue=True)

    def drop(self, letter: DeadLetter) -> bool:
        """Forget a letter and its message; False if it is gone."""
        return self._take(letter, requeue=False)

    def _take(self, letter: DeadLetter, *, requeue: bool) -> bool:
        keys = self._queue(letter.queue)

        def take(pipe: Any) -> Any:
            known, message = pipe.hget(keys.dead, letter.id), pipe.hget(keys.dead_messages, letter.id)
            pipe.multi()
            if known is None or message is None:
                return False
            pipe.hdel(keys.dead, letter.id)
            pipe.hdel(keys.dead_messages, letter.id)
            pipe.zrem(keys.dead_index, letter.id)
            pipe.hincrby(keys.dead, "", -len(known) - len(message))
            if requeue:
                step = keys.priorities.index(letter.priority) if letter.priority in keys.priorities else 0
                pipe.lpush(keys.lists[step], never_lost(message))
            return True

        return bool(self._client.transaction(take, keys.dead, keys.dead_messages, value_from_callable=True))


def never_lost(message: bytes) -> bytes:
    """Return a message as it was before any lease on it ran out; bytes that are no message stay as they are."""
    try:
        decoded = json.loads(message)
        info = decoded["properties"]["delivery_info"]
        for name in ("redelivered", "batchery_lost"):
            info.pop(name, None)
        return json.dumps(decoded).encode()
    except Exception:  # also RecursionError, and whatever other types raise
        return message
