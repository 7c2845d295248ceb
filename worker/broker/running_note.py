"""Notes at the server which of a worker's claims user code works on, so that they are known if the worker dies."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import redis

from .. import tuning
from .keys import RUNNING

logger = logging.getLogger(__name__)


class RunningNote:
    """The note of one worker: a string of tags, which expires after `expires_s` seconds. Any thread.

    Each thread notes what it works on, and the note names the work of all threads. It has a connection of its own, and
    reads answers much later, because the device must not wait for the server.
    """

    def __init__(self, client: "redis.Redis", worker: str, *, key_prefix: str = "", expires_s: float) -> None:
        """Note what the worker runs whose tags begin with `worker`; connect at once, if the server is there."""
        self._pool = client.connection_pool
        self._key = f"{key_prefix}{RUNNING}{worker}"
        self._expires_s = int(expires_s) + 1
        self._connection: Any = None
        #: Answers that nobody has read yet.
        self._unread = 0
        self._sent_at = 0.0
        self._lock = threading.Lock()
        #: What each thread works on.
        self._tags: dict[int, Sequence[str]] = {}
        self.write(())

    def write(self, tags: Sequence[str]) -> None:
        """Send that this thread works on these now, instead of those before.

        Never raises: without the note a batch runs all the same. It waits only to connect again, and that for a short
        time.
        """
        with self._lock:
            self._tags[threading.get_ident()] = tags
            self._write(" ".join(map(" ".join, self._tags.values())))

    def _write(self, note: str) -> None:
        for is_last in (False, True):  # the server may have closed the connection meanwhile
            try:
                self._send(note)
                return
            except (redis.RedisError, OSError) as exc:
                self.close()
                if is_last or isinstance(exc, redis.ResponseError):
                    logger.warning(
                        "If the running batch ends this worker, nobody may know, because the note failed: %s", exc
                    )

    def _send(self, note: str) -> None:
        if self._connection is None:
            # Not taken from the pool, whose time-outs are too long for the device to wait.
            limits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), tuning.NOTE_TIMEOUT_S)
            # Unread answers are no sign of a lost connection here, so it does not check itself.
            kwargs = {**self._pool.connection_kwargs, **limits, "health_check_interval": 0}
            self._connection = self._pool.connection_class(**kwargs)
        elif (idle := time.monotonic() - self._sent_at > tuning.NOTE_IDLE_S) or self._unread >= tuning.NOTE_ANSWERS:
            while self._unread > (0 if idle else tuning.NOTE_ANSWERS // 2):
                self._unread -= 1
                self._connection.read_response()
            if idle:
                self._connection.can_read(timeout=0)  # raises where the server has closed it
        self._connection.send_command("SET", self._key, note, "EX", self._expires_s)
        self._unread, self._sent_at = self._unread + 1, time.monotonic()

    def close(self) -> None:
        """Close the connection; a later `write` opens a new one."""
        if self._connection is not None:
            self._connection.disconnect()
        self._connection, self._unread = None, 0
