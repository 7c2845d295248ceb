"""Sorts the errors of Redis, and tries again what failed only for a time."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import EqualJitterBackoff

from .. import tuning

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF = EqualJitterBackoff(cap=tuning.RETRY_LONGEST_PAUSE_S, base=tuning.RETRY_FIRST_PAUSE_S)

#: Error codes of a server that is not the master that takes writes. Another server may be that.
_NOT_THE_MASTER = frozenset("READONLY MASTERDOWN CLUSTERDOWN NOREPLICAS UNBLOCKED".split())
#: Error codes of a master that is full, busy or starting, or that cannot write to its disk.
_FULL_OR_BUSY = frozenset("OOM BUSY LOADING TRYAGAIN MISCONF".split())


_NAMED = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.TryAgainError,
    redis.exceptions.NoScriptError,
)


def _code(error: redis.RedisError) -> str:
    """Return the code with which the server's answer begins, as the protocol has it."""
    # Before the answer to a command of a pipeline, redis-py writes the command.
    answer = str(error).rpartition(") of pipeline caused error: ")[2]
    return getattr(error, "status_code", None) or answer.partition(" ")[0]


def is_not_the_master(error: redis.RedisError) -> bool:
    """Whether a server answered that it is not the master: then the connection is closed, and the next may differ."""
    named = isinstance(error, redis.ReadOnlyError | redis.exceptions.ClusterDownError)
    return named or (isinstance(error, redis.ResponseError) and _code(error) in _NOT_THE_MASTER)


def is_transient(error: redis.RedisError) -> bool:
    """Whether the same command may succeed later: after lost connections, time-outs and some answers of a server."""
    if not isinstance(error, redis.ResponseError) or is_not_the_master(error):
        return True
    # redis-py loads a missing script once; if it is missing again, another server has become the master meanwhile.
    named = isinstance(error, _NAMED)
    return named or _code(error) in _FULL_OR_BUSY


class Outage:
    """Since when Redis cannot be used, as all threads of a worker find out; the log says so once, and once at its end.

    What fails for less than a second is no outage, because a connection that was cut is soon replaced.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: How often each thing that is tried has failed since it last succeeded, and when it first failed.
        self._failures: dict[object, tuple[int, float]] = {}
        self._began: float | None = None
        self._told_at = 0.0
        #: The last error.
        self.error = ""

    @property
    def seconds(self) -> float:
        """For how long Redis cannot be used; 0 while it can."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def report(self) -> dict[str, float | str]:
        """Return for how long Redis cannot be used, and why; 0 while it can."""
        seconds = round(self.seconds, 1)
        return {"redis_away_s": seconds, "redis_error": self.error if seconds else ""}

    def failed(self, what: object, error: Exception) -> int:
        """Note that `what` failed; return how often it had failed before, since it last succeeded."""
        with self._lock:
            now = time.monotonic()
            before, since = self._failures.get(what, (0, now))
            self._failures[what] = (before + 1, since)
            self.error = f"{error}"
            lasts = now - since >= tuning.OUTAGE_S
            if before and lasts and (self._began is None or now - self._told_at > tuning.OUTAGE_LOG_S):
                self._began = since if self._began is None else self._began
                self._told_at = now
                logger.warning(
                    "Redis cannot be used, for %.1f s now. It is tried until it can: %s", self.seconds, error
                )
            return before

    def succeeded(self, what: object) -> None:
        """Note that `what` succeeded, or is no longer tried."""
        if what not in self._failures:  # asked without the lock, because this is the usual case
            return
        with self._lock:
            del self._failures[what]
            if self._began is not None and all(count == 1 for count, _ in self._failures.values()):
                logger.warning("Redis can be used again, after %.1f s.", self.seconds)
                self._began = None


class RedisRetry:
    """Repeats actions on Redis. Any thread. redis-py's `Retry` would sleep: here `stop` ends every pause at once."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self.outage = Outage()

    def stop(self) -> None:
        """From now on, try each action once only."""
        self._stopped.set()

    def pause(self) -> None:
        """Wait for about as long as the pauses get; `stop` ends it."""
        self._stopped.wait(_BACKOFF.compute(tuning.RETRY_MOST_DOUBLINGS))

    def until_stopped(self, action: Callable[[], T]) -> T | None:
        """Return the result of `action`, repeated while Redis fails; None if `stop` was called before."""
        return self._repeat(action, lambda _: True)

    def while_transient(self, action: Callable[[], T]) -> T | None:
        """Return the result of `action`, repeated while Redis fails for a time; None if `stop` was called before.

        Raises:
            redis.ResponseError: the server refuses the command itself, and would refuse it again.
        """
        return self._repeat(action, is_transient)

    def once(self, what: str, action: Callable[[], T]) -> T | None:
        """Return the result of `action`; if Redis fails, None after a pause, so that a caller's loop does not spin.

        The pause grows with the failures of the same `what` in a row. What has worked for a while begins a new row.
        """
        began = time.monotonic()
        try:
            result = action()
        except redis.RedisError as exc:
            if time.monotonic() - began > tuning.RETRY_FIRST_PAUSE_S:
                self.outage.succeeded(what)
            self._pause(what, exc)
            return None
        self.outage.succeeded(what)
        return result

    def _repeat(self, action: Callable[[], T], may_pass: Callable[[redis.RedisError], bool]) -> T | None:
        what = object()
        try:
            while True:
                try:
                    return action()
                except redis.RedisError as exc:
                    if not may_pass(exc):
                        raise
                    if self._pause(what, exc):
                        return None
        finally:
            self.outage.succeeded(what)

    def _pause(self, what: object, error: Exception) -> bool:
        failures = min(self.outage.failed(what, error), tuning.RETRY_MOST_DOUBLINGS)
        return self._stopped.wait(_BACKOFF.compute(failures))
