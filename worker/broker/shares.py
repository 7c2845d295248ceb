"""What the server is told about this worker's part in the fair share of its queues."""

import contextlib
from collections.abc import Mapping, Sequence

import redis

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

    def news(self, queues: Sequence[Queue], aside: Sequence[int]) -> list[int | str]:
        """Return for each queue the messages held aside, as a claim has to tell them; '' if that was told before.

        `told` follows, unless there was an error: then it is not known what the server knows.
        """
        known = [self._told.get(queue.name, 0) for queue in queues]
        self._told.update([(queue.name, -1) for queue in queues])
        return ["" if count == before else count for count, before in zip(aside, known, strict=True)]

    def told(self, queues: Sequence[Queue], aside: Sequence[int]) -> None:
        """Note what a claim has told."""
        self._told.update(zip([queue.name for queue in queues], aside, strict=True))

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
