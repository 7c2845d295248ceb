"""Notes at the server which of a worker's claims run, so that they are known if the worker dies."""

import logging
from collections.abc import Iterable
from typing import Any

import redis

from .. import tuning
from .keys import RUNNING

logger = logging.getLogger(__name__)


class RunningNote:
    """The note of one worker: a string of tags, which expires after `expires_s` seconds. One thread.

    It has a connection of its own, and reads answers much later, because the device must not wait for the server.
    """

    def __init__(self, client: "redis.Redis", worker: str, *, key_prefix: str = "", expires_s: float) -> None:
        """Note what the worker runs whose tags begin with `worker`; connect at once, if the server is there."""
        self._pool = client.connection_pool
        self._key = f"{key_prefix}{RUNNING}{worker}"
        self._expires_s = int(expires_s) + 1
        self._connection: Any = None
        #: Answers that nobody has read yet.
        self._unread = 0
        self.write(())

    def write(self, tags: Iterable[str]) -> None:
        """Send that these run now, instead of those before. Never raises: without the note a batch runs all the same.

        It waits only to connect again, and that for a short time.
        """
        try:
            if self._connection is None:
                # Not taken from the pool, whose time-outs are too long for the device to wait.
                limits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), tuning.NOTE_TIMEOUT_S)
                self._connection = self._pool.connection_class(**{**self._pool.connection_kwargs, **limits})
            if self._unread >= tuning.NOTE_ANSWERS:
                self._read_older_answers()
            self._connection.send_command("SET", self._key, " ".join(tags), "EX", self._expires_s)
            self._unread += 1
        except (redis.RedisError, OSError) as exc:
            logger.warning(
                "A batch runs unnoted. If it ends this worker, that does not count against it. Redis: %s", exc
            )
            self.close()

    def _read_older_answers(self) -> None:
        while self._unread > tuning.NOTE_ANSWERS // 2:
            self._unread -= 1
            self._connection.read_response()

    def close(self) -> None:
        """Close the connection; a later `write` opens a new one."""
        if self._connection is not None:
            self._connection.disconnect()
        self._connection, self._unread = None, 0
