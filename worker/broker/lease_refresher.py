"""The lease thread: refreshes our lease, gives orphans back, and sends what `Leases` has buffered."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import redis

from .. import tuning
from .keeper_process import KeeperProcess
from .keys import Queue
from .leases import Leases
from .retry import Outage

logger = logging.getLogger(__name__)


class LeaseRefresher:
    """Refreshes our lease several times within its length, with the help of `keeper`, if there is one.

    `hung` tells whether user code has exceeded its time limit. Each time that it turns true, `on_hung` is called once.
    """

    def __init__(
        self,
        leases: Leases,
        queues: Callable[[], Sequence[Queue]],
        *,
        hung: Callable[[], bool],
        on_hung: Callable[[], None],
        outage: Outage,
        keeper: KeeperProcess | None = None,
    ) -> None:
        self._leases = leases
        self._queues = queues
        self._refresh_every_s = leases.lease_s / tuning.REFRESHES_PER_LEASE
        self._turn_s = min(self._refresh_every_s, tuning.LEASE_TURN_S)
        self._refreshed_at = float("-inf")
        self._mended_at = time.monotonic()
        self._hung = hung
        self._on_hung = on_hung
        self._outage = outage
        self._was_hung = self._found_orphans = False
        self._keeper = keeper
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batchery-lease", daemon=True)

    def start(self) -> None:
        """Start refreshing."""
        if self._keeper is not None:
            self._keeper.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop refreshing: the lease then runs out, unless the worker leaves."""
        self._stopped.set()
        self._leases.has_buffered.set()
        self._thread.join()
        if self._keeper is not None:
            self._keeper.stop()

    @property
    def dead_thread(self) -> str | None:
        """The name of a thread that has died, if one has."""
        threads = [self._thread, *([] if self._keeper is None else self._keeper.threads)]
        return next((thread.name for thread in threads if not thread.is_alive()), None)

    def _run(self) -> None:
        next_turn = float("-inf")
        while not self._stopped.is_set():
            try:
                if time.monotonic() >= next_turn:
                    more = self._take_turn()
                    next_turn = time.monotonic() + (0.0 if more else self._turn_s)
                self._leases.flush()
                self._outage.succeeded(self)
                self._leases.has_buffered.wait(max(0.0, next_turn - time.monotonic()))
            except redis.RedisError as exc:
                self._outage.failed(self, exc)
                self._stopped.wait(self._turn_s)
            except Exception:  # without this thread, the worker would lose all that it holds
                logger.exception("The lease thread failed, and tries again in %.1f s.", self._turn_s)
                self._stopped.wait(self._turn_s)

    def _take_turn(self) -> bool:
        """Do what is due; return whether there may be more orphans, between which the lease must be refreshed."""
        if time.monotonic() - self._refreshed_at >= self._refresh_every_s - self._turn_s / 2:
            refreshed = self._leases.refresh(self._queues())
            self._refreshed_at = time.monotonic()
            if self._keeper is not None:
                self._keeper.refreshed(refreshed)
        hung = self._hung()
        if hung and not self._was_hung:
            self._leases.flush()  # so that what is acknowledged is not given back
            self._on_hung()
        self._was_hung = hung
        # Where there were orphans, there may be more, so that it stays this worker's turn.
        if orphans := self._leases.sweep(0.0 if self._found_orphans else self._turn_s):
            logger.warning("%d jobs of a worker that died or hung are back at the front of the queue.", orphans)
        if time.monotonic() - self._mended_at >= tuning.MEND_LEASES * self._leases.lease_s:
            self._leases.mend()
            self._mended_at = time.monotonic()
        self._found_orphans = orphans > 0
        return self._found_orphans
