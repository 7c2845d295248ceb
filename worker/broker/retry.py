"""Tries again what Redis refused, because it is away, full or read-only; and separates this from permanent errors."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import ExponentialBackoff

from .. import tuning

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF = ExponentialBackoff(cap=tuning.RETRY_LONGEST_PAUSE_S, base=tuning.RETRY_FIRST_PAUSE_S)


#: Beginnings of the answers of a server in a passing state: full, a replica, loading, busy, or without its master.
_TRANSIENT = ("OOM", "READONLY", "LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "MISCONF", "TRYAGAIN", "CLUSTERDOWN")


def is_transient(error: redis.RedisError) -> bool:
    """Whether the same command may succeed later: after lost connections, time-outs and some answers of a server."""
    if not isinstance(error, redis.ResponseError):
        return True
    # redis-py takes the first word off where it has a class for it, and scripts put their own words before it.
    words = (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError, redis.exceptions.TryAgainError)
    return isinstance(error, words) or str(error).startswith(_TRANSIENT)


class RedisRetry:
    """Repeats actions on Redis. Any thread. redis-py's `Retry` would sleep: here `stop` ends every pause at once."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        #: Whether the log says that Redis fails, and since when.
        self._told = False
        self._told_at = float("-inf")

    def stop(self) -> None:
        """From now on, try each action once only."""
        self._stopped.set()

    def until_stopped(self, action: Callable[[], T]) -> T | None:
        """Return the result of `action`, repeated while Redis fails; None if `stop` was called before."""
        return self._repeat(action, lambda _: True)

    def while_transient(self, action: Callable[[], T]) -> T | None:
        """Return the result of `action`, repeated while Redis fails for a time; None if `stop` was called before.

        Raises:
            redis.ResponseError: the server refuses the command itself, and would refuse it again.
        """
        return self._repeat(action, is_transient)

    def once(self, action: Callable[[], T]) -> T | None:
        """Return the result of `action`; if Redis fails, None after a pause, so that a caller's loop does not spin."""
        try:
            return self._succeeded(action())
        except redis.RedisError as exc:
            self._pause(exc, 0)
            return None

    def _repeat(self, action: Callable[[], T], may_pass: Callable[[redis.RedisError], bool]) -> T | None:
        failures = 0
        while True:
            try:
                return self._succeeded(action())
            except redis.RedisError as exc:
                if not may_pass(exc):
                    raise
                if self._pause(exc, failures):
                    return None
            failures += 1

    def _succeeded(self, result: T) -> T:
        if self._told:
            self._told = False
            logger.warning("Redis answers again.")
        return result

    def _pause(self, error: Exception, failures: int) -> bool:
        pause_s = _BACKOFF.compute(failures)
        # One line for each time that Redis is away, or for every few seconds if it comes and goes.
        level, now = logging.DEBUG, time.monotonic()
        if not self._told and now - self._told_at >= tuning.RETRY_LINE_S:
            self._told, self._told_at, level = True, now, logging.WARNING
        logger.log(
            level,
            "Redis: %s. Trying again until it answers, every %.0f s at most.",
            error,
            tuning.RETRY_LONGEST_PAUSE_S,
        )
        return self._stopped.wait(pause_s)
