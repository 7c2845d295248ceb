"""The doorbell: waits for work without taking it out of the queue, and without waking every worker at once."""

import time
from collections.abc import Sequence
from typing import Any

import redis

from .keys import Queue

#: Longest single wait on a socket, in seconds: how soon an interrupted wait is noticed.
_SLICE_S = 0.2
#: Seconds that a watcher which died keeps the others from watching.
_GRACE_S = 1.0

_INVALIDATIONS = "__redis__:invalidate"


class ArrivalWatcher:
    """Rings when a message arrives in any of the queues.

    Of the idle workers one watches, through Redis' client-side caching (`CLIENT TRACKING`): one `EXISTS` over all lists
    tells whether work is there and, in the same step, arms the server to tell of the next change, so that no message
    slips in between. The others wait for a token. Whoever is woken claims first and then passes a token on
    (`pass_on`), which wakes one more: it claims if there is something left, and watches if there is not. So a message
    wakes two workers, however many are idle, and a burst as many as it has work for.

    Three connections, whatever the number of queues and priorities.
    """

    def __init__(self, client: "redis.Redis") -> None:
        """Listen to `client`'s server; connects at the first wait."""
        self._pool = client.connection_pool
        self._asking: Any = None
        #: Answers of `_asking` that nobody has read yet.
        self._unread = 0
        self._listening: Any = None
        self._token: Any = None
        self._token_asked = False
        #: Until when, on the monotonic clock, this worker may believe that it is the one that watches.
        self._watches_until = 0.0
        self._was_idle = False
        self._bell = ""
        self.interrupted = False

    def wait(self, queues: Sequence[Queue], timeout: float) -> bool:
        """Return whether there may be work: at once if there is, as soon as there is, at the latest after `timeout`."""
        self._was_idle = True
        self._bell = f"{queues[0].prefix}batchery:bell:{','.join(sorted(queue.name for queue in queues))}"
        try:
            if self._listening is None:
                self._connect()
            if self._watch(timeout):
                return self._wait_for_message(queues, timeout)
            return self._wait_for_token(timeout)
        except BaseException:
            self.close()
            raise

    def pass_on(self, *, more: bool) -> None:
        """After a claim: let another idle worker watch, or claim too if there is `more`.

        Sends only, so that the jobs just claimed need not wait; what the server answers is read by the next wait.
        """
        if not self._was_idle or self._asking is None:
            return
        self._was_idle = False
        watched, self._watches_until = time.monotonic() < self._watches_until, 0.0
        if not (watched or more):
            return
        commands: list[tuple[Any, ...]] = [("DEL", self._bell + ":watcher")] if watched else []
        commands += [("LPUSH", self._bell, 1), ("LTRIM", self._bell, 0, 0), ("EXPIRE", self._bell, 10)]
        try:
            self._asking.send_packed_command(self._asking.pack_commands(commands))
            self._unread += len(commands)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections; a later wait opens new ones."""
        for connection in (self._asking, self._listening, self._token):
            if connection is not None:
                connection.disconnect()
        self._asking = self._listening = self._token = None
        self._token_asked = False
        self._unread = 0

    def _watch(self, timeout: float) -> bool:
        """Become, or stay, the worker that watches; return whether we are."""
        milliseconds = int(1000 * (timeout + _GRACE_S))
        until = time.monotonic() + timeout + _GRACE_S
        believed = time.monotonic() < self._watches_until
        for condition in ("XX", "NX") if believed else ("NX",):
            if self._ask("SET", self._bell + ":watcher", 1, "PX", milliseconds, condition):
                self._watches_until = until
                return True
        return False

    def _wait_for_message(self, queues: Sequence[Queue], timeout: float) -> bool:
        if self._ask("EXISTS", *(key for queue in queues for key in queue.lists)):
            return True
        return self._read(self._listening, timeout) is not None

    def _wait_for_token(self, timeout: float) -> bool:
        if not self._token_asked:
            self._token.send_command("BLPOP", self._bell, timeout)
            self._token_asked = True
        # The server answers within the timeout by itself; a slow answer is left for the next wait.
        answer = self._read(self._token, timeout + _SLICE_S)
        return answer is not None and answer[0] is not None

    def _read(self, connection: Any, timeout: float) -> Any:
        """Return a tuple of one answer; None if none came in time."""
        deadline = time.monotonic() + timeout
        while not self.interrupted and (left := deadline - time.monotonic()) > 0:
            if connection.can_read(timeout=min(left, _SLICE_S)):
                if connection is self._token:
                    self._token_asked = False
                return (connection.read_response(),)
        return None

    def _ask(self, *command: Any) -> Any:
        while self._unread:
            self._unread -= 1
            self._asking.read_response()
        self._asking.send_command(*command)
        return self._asking.read_response()

    def _connect(self) -> None:
        self._asking, self._listening, self._token = (self._pool.make_connection() for _ in range(3))
        for connection in (self._asking, self._listening, self._token):
            connection.connect()
        self._listening.send_command("CLIENT", "ID")
        listener = self._listening.read_response()
        self._listening.send_command("SUBSCRIBE", _INVALIDATIONS)
        self._listening.read_response()
        self._ask("CLIENT", "TRACKING", "ON", "REDIRECT", listener)
