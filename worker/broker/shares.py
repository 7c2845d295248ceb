"""What the server is told about this worker's part in the fair share of its queues."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import redis

from .held import HeldClaims
from .keys import Queue

#: What stands at the server for a worker that claims no more, instead of the messages that it holds aside.
CLAIMS_NO_MORE = "claims no more"


class Shares:
    """Tells how many messages a worker holds aside, and whether others are to leave anything to it. Any thread.

    An error makes the shares of others wrong for a time, and loses nothing.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        #: What the server knows of the messages that are held aside, by queue.
        self._told: dict[str, int] = {}
        self._leaves = False

    @contextlib.contextmanager
    def telling(self, queues: Sequence[Queue], held: HeldClaims) -> Iterator[dict[str, int | str]]:
        """Return for each queue what a claim has to tell: how many messages are held aside, '' if that was told."""
        aside = {queue.name: held.aside_of(queue) for queue in queues}
        told, self._told = self._told, dict.fromkeys(aside, -1)  # after an error it is not known what was told
        yield {name: "" if told.get(name, 0) == count else count for name, count in aside.items()}
        self._told = {**told, **aside}

    def leave(self) -> None:
        """Let nothing be left to this worker, from the next `flush` on until it claims again. Never blocks."""
        self._leaves = True

    def flush(self, client: "redis.Redis", queues: Mapping[str, Queue]) -> None:
        """Tell the other workers of `queues`, by name, what `leave` has promised."""
        if not self._leaves:
            return
        for name, queue in [*queues.items()]:
            self._told[name] = -1
            with contextlib.suppress(redis.ResponseError):  # the server is full
                client.hset(queue.aside, self._worker, CLAIMS_NO_MORE)
        self._leaves = False

    def forget(self, client: "redis.Redis", queues: Mapping[str, Queue]) -> None:
        """Take back all that was told, because the worker is gone."""
        for queue in queues.values():
            client.hdel(queue.aside, self._worker)
