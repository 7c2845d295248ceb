"""When Redis does not answer: again and again, until the worker stops."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import redis

logger = logging.getLogger(__name__)

#: Seconds between tries: doubled each time, up to the second.
_BACKOFF_S = (0.1, 2.0)


class Persist:
    """Does what Redis may fail at. Any thread."""

    def __init__(self) -> None:
        """Persist until `stop`."""
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Give up from now on what fails: the worker stops."""
        self._stopped.set()

    def __call__(self, action: Callable[[], Any], *, until_done: bool = False) -> Any:
        """Do `action`, again and again if Redis fails; None if it was given up because the worker stops.

        Without `until_done` it is tried once, and failing costs one wait.
        """
        pause, longest = _BACKOFF_S
        while True:
            try:
                return action()
            except redis.RedisError as exc:
                logger.warning("Redis: %s. Trying again in %.1f s.", exc, pause)
            if self._stopped.wait(pause) or not until_done:
                return None
            pause = min(2 * pause, longest)
