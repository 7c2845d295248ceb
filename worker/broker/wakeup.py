"""Waits for work without taking it out of the queue, and without waking every idle worker at once."""

import time
from collections.abc import Sequence
from typing import Any

import redis

from .. import tuning
from .keys import Queue


class ArrivalWatcher:
    """Waits for messages that arrive in any of some queues. One thread at a time.

    Of the idle workers one watches, through Redis' client-side caching (`CLIENT TRACKING`): one `EXISTS` over all lists
    tells whether there is work and, in the same step, makes the server report the next change, so that no message is
    missed in between. The others wait for a wake token. A worker that wakes up claims first and then leaves a token
    (`wake_next_worker`), which wakes one more: it claims if something is left, and watches if not. So a message wakes
    two workers, however many are idle, and a burst wakes as many as it has work for.

    It has two connections, whatever the number of queues and priorities.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._pool = client.connection_pool
        #: Connections for commands, and for the server's reports of changes; made by the first wait.
        self._commands: Any = None
        self._changes: Any = None
        #: Answers to commands that nobody has read yet.
        self._unread = 0
        #: The time on the monotonic clock until which this worker may assume that it is the watcher.
        self._watches_until = 0.0
        #: When the server was last asked whether its reports still arrive, on the monotonic clock.
        self._checked_at = 0.0
        self._was_idle = False
        self._wake_key = ""
        #: Whether waits end at once, because the worker stops.
        self.interrupted = False

    def wait(self, queues: Sequence[Queue], timeout: float) -> bool:
        """Wait until there may be work, for `timeout` seconds at most; return whether there may be."""
        self._was_idle = True
        self._wake_key = f"{queues[0].prefix}batchery:wake:{','.join(sorted(queue.name for queue in queues))}"
        try:
            if self._commands is None:
                self._connect()
            if self._become_watcher(timeout):
                arrived = self._wait_for_arrival(queues, timeout)
                if self.interrupted:  # no other worker must wait for this one, which does not come back
                    self.wake_next_worker(more=False)
                return arrived
            return self._wait_for_token(timeout)
        except BaseException:
            self.close()
            raise

    def wake_next_worker(self, *, more: bool) -> None:
        """After a claim, wake another idle worker: to watch in our place, or to claim too if there is `more`.

        Only sends, because the jobs just claimed must not wait for the server's answers: the next wait reads those.
        """
        if not self._was_idle or self._commands is None:
            return
        self._was_idle = False
        watched, self._watches_until = time.monotonic() < self._watches_until, 0.0
        if not (watched or more):
            return
        key = self._wake_key
        commands: list[tuple[Any, ...]] = [("DEL", key + ":watcher")] if watched else []
        commands += [("LPUSH", key, 1), ("LTRIM", key, 0, 0), ("EXPIRE", key, tuning.WAKE_TOKEN_EXPIRES_S)]
        try:
            self._commands.send_packed_command(self._commands.pack_commands(commands))
            self._unread += len(commands)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections; a later wait opens new ones."""
        for connection in (self._commands, self._changes):
            if connection is not None:
                connection.disconnect()
        self._commands = self._changes = None
        self._unread = 0

    def _connect(self) -> None:
        # Not taken from the pool, which would count them and not get them back.
        pool = self._pool
        # A connection that replaces itself would lose its tracking.
        kwargs = {**pool.connection_kwargs, "health_check_interval": 0, "socket_timeout": tuning.WATCHER_TIMEOUT_S}
        self._commands, self._changes = (pool.connection_class(**kwargs) for _ in range(2))
        self._checked_at = time.monotonic()
        self._changes.send_command("CLIENT", "ID")
        client_id = self._changes.read_response()
        self._changes.send_command("SUBSCRIBE", "__redis__:invalidate")
        self._changes.read_response()
        self._command("CLIENT", "TRACKING", "ON", "REDIRECT", client_id)

    def _become_watcher(self, timeout: float) -> bool:
        """Become or stay the watcher; return whether this worker is it."""
        seconds, now = timeout + tuning.WATCHER_GRACE_S, time.monotonic()
        for condition in ("XX", "NX") if now < self._watches_until else ("NX",):
            if self._command("SET", self._wake_key + ":watcher", 1, "PX", int(1000 * seconds), condition):
                self._watches_until = now + seconds
                return True
        return False

    def _wait_for_arrival(self, queues: Sequence[Queue], timeout: float) -> bool:
        if self._command("EXISTS", *(key for queue in queues for key in queue.lists)):
            return True
        return self._changes_reported() or (
            self._readable(self._changes, timeout) and bool(self._changes.read_response())
        )

    def _changes_reported(self) -> bool:
        """Ask for an answer on the connection for reports, which is silent for hours; return whether a report came.

        Raises:
            redis.TimeoutError: none came, so the connection is lost and nobody knows for how long.
        """
        if time.monotonic() - self._checked_at < tuning.HEALTH_CHECK_S:
            return False
        self._changes.send_command("PING")
        reported = False
        while self._changes.read_response(timeout=tuning.HEALTH_ANSWER_S)[0] != b"pong":
            reported = True
        self._checked_at = time.monotonic()
        return reported

    def _wait_for_token(self, timeout: float) -> bool:
        self._commands.send_command("BLPOP", self._wake_key, timeout)
        self._unread += 1
        # The server itself ends the wait after `timeout`.
        if not self._readable(self._commands, timeout + tuning.WATCHER_TIMEOUT_S):
            if self.interrupted:
                return False
            raise redis.TimeoutError("The server did not end a wait for a wake token.")
        self._unread -= 1
        return self._commands.read_response() is not None

    def _readable(self, connection: Any, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not self.interrupted and (left := deadline - time.monotonic()) > 0:
            if connection.can_read(timeout=min(left, tuning.WAIT_SLICE_S)):
                return True
        return False

    def _command(self, *command: Any) -> Any:
        while self._unread:
            self._unread -= 1
            self._commands.read_response()
        self._commands.send_command(*command)
        return self._commands.read_response()
