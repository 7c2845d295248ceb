"""The doorbell: waits for work without taking it out of the queue."""

import time
from collections.abc import Sequence
from typing import Any

import redis

from .keys import Queue

#: Longest single wait on the socket, in seconds: how soon an interrupted wait is noticed.
_SLICE_S = 0.2

_INVALIDATIONS = "__redis__:invalidate"


class Doorbell:
    """Rings when a message arrives in any of the queues, through Redis' client-side caching (`CLIENT TRACKING`).

    One `EXISTS` over all lists tells whether work is there and, in the same step, arms the server to tell us of the
    next change: no message can slip in between. Two connections, whatever the number of queues and priorities: one
    that asks, one that listens.
    """

    def __init__(self, client: "redis.Redis") -> None:
        """Listen to `client`'s server; connects at the first wait."""
        self._pool = client.connection_pool
        self._asking: Any = None
        self._listening: Any = None
        self.interrupted = False

    def wait(self, queues: Sequence[Queue], timeout: float) -> bool:
        """Return whether there is work, at once if there is or as soon as there is, at the latest after `timeout`."""
        if self._listening is None:
            self._connect()
        try:
            self._asking.send_command("EXISTS", *(key for queue in queues for key in queue.lists))
            if self._asking.read_response():
                return True
            deadline = time.monotonic() + timeout
            while not self.interrupted and (left := deadline - time.monotonic()) > 0:
                if self._listening.can_read(timeout=min(left, _SLICE_S)):
                    self._listening.read_response()
                    return True
        except BaseException:
            self.close()
            raise
        return False

    def close(self) -> None:
        """Close both connections; a later wait opens new ones."""
        for connection in (self._asking, self._listening):
            if connection is not None:
                connection.disconnect()
        self._asking = self._listening = None

    def _connect(self) -> None:
        self._asking, self._listening = self._pool.make_connection(), self._pool.make_connection()
        try:
            self._listening.connect()
            self._asking.connect()
            self._listening.send_command("CLIENT", "ID")
            listener = self._listening.read_response()
            self._listening.send_command("SUBSCRIBE", _INVALIDATIONS)
            self._listening.read_response()
            self._asking.send_command("CLIENT", "TRACKING", "ON", "REDIRECT", listener)
            self._asking.read_response()
        except BaseException:
            self.close()
            raise
