"""The lease thread: refreshes what we hold, and puts orphans back."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import redis

from .keys import Queue
from .leases import Leases

logger = logging.getLogger(__name__)


class LeaseRefresher:
    """Refreshes leases three times within their length, until the running batch exceeds its time limit."""

    def __init__(
        self,
        leases: Leases,
        queues: Callable[[], Sequence[Queue]],
        *,
        lease_s: float,
        hung: Callable[[], bool],
        on_hung: Callable[[], None],
    ) -> None:
        """Keep `leases` while `hung()` is false; call `on_hung` once each time that it turns true."""
        self._leases = leases
        self._queues = queues
        self._every_s = lease_s / 3
        self._hung = hung
        self._on_hung = on_hung
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batchery-lease", daemon=True)

    def start(self) -> None:
        """Start refreshing."""
        self._thread.start()

    def stop(self) -> None:
        """Stop refreshing; what is held runs out unless it is settled or given back."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        beat = min(self._every_s, 2.0)
        refreshed_at = float("-inf")
        was_hung = False
        while not self._stopped.wait(beat if refreshed_at > 0 else 0):
            try:
                hung = self._hung()
                if hung and not was_hung:
                    self._on_hung()
                was_hung = hung
                # A hung worker keeps neither its leases nor its place among the living, whose share others may take.
                if not hung and time.monotonic() - refreshed_at >= self._every_s - beat / 2:
                    self._leases.refresh(self._queues())
                    refreshed_at = time.monotonic()
                # Some at a time, so that the server is not kept busy, but all of them now: somebody waits for each.
                orphans = sum(iter(self._leases.sweep, 0))
                if orphans:
                    logger.warning("%d jobs of a worker that died or hung are back at the front of the queue.", orphans)
            except redis.RedisError as exc:
                logger.warning("Leases could not be refreshed, trying again in %.1f s: %s", beat, exc)
