"""The lease thread: refreshes leases, gives orphans back and sends what `Leases` has buffered."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import redis

from .. import tuning
from .keys import Queue
from .leases import Leases

logger = logging.getLogger(__name__)


class LeaseRefresher:
    """Refreshes leases several times within their length, as long as the running batch makes progress."""

    def __init__(
        self,
        leases: Leases,
        queues: Callable[[], Sequence[Queue]],
        *,
        lease_s: float,
        stalled: Callable[[], bool],
        on_stalled: Callable[[], None],
    ) -> None:
        """Refresh `leases` while `stalled()` is false; call `on_stalled` once each time that it turns true."""
        self._leases = leases
        self._queues = queues
        self._refresh_every_s = lease_s / tuning.REFRESHES_PER_LEASE
        self._turn_s = min(self._refresh_every_s, tuning.LEASE_TURN_S)
        self._refreshed_at = float("-inf")
        self._is_stalled = stalled
        self._on_stalled = on_stalled
        self._was_stalled = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batchery-lease", daemon=True)

    def start(self) -> None:
        """Start refreshing."""
        self._thread.start()

    def stop(self) -> None:
        """Stop refreshing: the leases run out unless their messages are settled or given back."""
        self._stopped.set()
        self._leases.has_buffered.set()
        self._thread.join()

    def _run(self) -> None:
        next_turn = float("-inf")
        while not self._stopped.is_set():
            succeeded = self._attempt(self._leases.flush)
            if time.monotonic() >= next_turn:
                # Tried after a flush that failed, too: leases must not run out because of it.
                succeeded = self._attempt(self._take_turn) and succeeded
                next_turn = time.monotonic() + self._turn_s
            # After an error, what is buffered waits for the next turn.
            waited_for = self._leases.has_buffered if succeeded else self._stopped
            waited_for.wait(max(0.0, next_turn - time.monotonic()))

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except redis.RedisError as exc:
            logger.warning("Leases could not be refreshed. The next try is in %.1f s. Redis: %s", self._turn_s, exc)
            return False
        return True

    def _take_turn(self) -> None:
        stalled = self._is_stalled()
        if stalled and not self._was_stalled:
            self._on_stalled()
        self._was_stalled = stalled
        # A stalled worker keeps neither its leases nor its place among the live workers, so that others take its share.
        if not stalled and time.monotonic() - self._refreshed_at >= self._refresh_every_s - self._turn_s / 2:
            self._leases.refresh(self._queues())
            self._refreshed_at = time.monotonic()
        # Each sweep is small, so that the server is not kept busy, but a turn goes on until no orphan is left.
        orphans = sum(iter(self._leases.sweep, 0))
        if orphans:
            logger.warning("%d jobs of a worker that died or stalled are back at the front of their queue.", orphans)
