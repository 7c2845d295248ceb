"""Tries again what Redis refused, because it is away, full or read-only."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import ExponentialBackoff

from .. import tuning

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF = ExponentialBackoff(cap=tuning.RETRY_LONGEST_PAUSE_S, base=tuning.RETRY_FIRST_PAUSE_S)


class RedisRetry:
    """Repeats actions on Redis. Any thread. redis-py's `Retry` would sleep: here `stop` ends every pause at once."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def stop(self) -> None:
        """From now on, try each action once only."""
        self._stopped.set()

    def until_stopped(self, action: Callable[[], T]) -> T | None:
        """Return the result of `action`, repeated while Redis fails; None if `stop` was called before."""
        failures = 0
        while True:
            try:
                return action()
            except redis.RedisError as exc:
                if self._pause(exc, failures):
                    return None
            failures += 1

    def once(self, action: Callable[[], T]) -> T | None:
        """Return the result of `action`; if Redis fails, None after a pause, so that a caller's loop does not spin."""
        try:
            return action()
        except redis.RedisError as exc:
            self._pause(exc, 0)
            return None

    def _pause(self, error: Exception, failures: int) -> bool:
        pause_s = _BACKOFF.compute(failures)
        logger.warning("Redis: %s. Trying again in %.1f s.", error, pause_s)
        return self._stopped.wait(pause_s)
