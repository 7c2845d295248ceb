"""Messages that a worker has parked: it keeps their leases, but their bytes are only at the server."""

import heapq
import threading
import time
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from ... import tuning
from ...broker import Claim, HeldAs, Leases
from ...broker.retry import RedisRetry

_queue_name = attrgetter("queue.name")


class Parking:
    """The parked messages of one worker, by the time at which they are fetched. Any thread, unless it is told."""

    def __init__(self, leases: Leases, retry: RedisRetry) -> None:
        self._leases = leases
        self._retry = retry
        #: A heap: when its bytes are to be fetched, its position among the claims, the claim.
        self._parked: list[tuple[float, int, Claim]] = []
        self._lock = threading.Lock()

    @property
    def tags(self) -> list[str]:
        """The tags of all that is parked."""
        with self._lock:
            return [claim.tag for _, _, claim in self._parked]

    def park(self, claim: Claim, seconds: float) -> None:
        """Keep a message's lease, and fetch its bytes again after `seconds`."""
        self._leases.change(claim, HeldAs.PARKED, claim.size)
        claim.message = b""
        with self._lock:
            heapq.heappush(self._parked, (time.monotonic() + seconds, claim.seq, claim))

    @property
    def next_due_s(self) -> float:
        """Seconds until the next parked message is due; one that has no room yet is looked at again soon."""
        if not self._parked:
            return tuning.ARRIVAL_WAIT_S
        return min(max(self._parked[0][0] - time.monotonic(), tuning.CAPACITY_WAIT_S), tuning.ARRIVAL_WAIT_S)

    def fetch_due(self, free_bytes: int, *, is_empty: bool) -> list[Claim]:
        """Return messages that are due, with their bytes: `free_bytes` at most, but one in any case if `is_empty`."""
        due = self._take_due(free_bytes, is_empty)
        fetched: list[Claim] = []
        for _, group in groupby(sorted(due, key=_queue_name), key=_queue_name):
            claims = [claim for claim in group if self._leases.holds(claim)]
            messages = self._retry.once("fetch", lambda claims=claims: self._leases.fetch(claims)) if claims else []  # type: ignore[misc]
            if messages is None:
                for claim in claims:
                    self.park(claim, tuning.PARK_AGAIN_S)
                continue
            for claim, message in zip(claims, messages, strict=True):
                if message is None:
                    self._leases.let_go([claim])
                else:
                    claim.message = message
                    self._leases.change(claim, HeldAs.ETA, len(message) + tuning.CELERY_OBJECTS_BYTES)
                    fetched.append(claim)
        return fetched

    def _take_due(self, free: int, is_empty: bool) -> Sequence[Claim]:
        due: list[Claim] = []
        if not self._parked or self._parked[0][0] > (now := time.monotonic()):
            return due
        with self._lock:
            while self._parked and self._parked[0][0] <= now and len(due) < tuning.FETCH_MAX_JOBS:
                free -= self._parked[0][2].size
                if free < 0 and (due or not is_empty):
                    break
                due.append(heapq.heappop(self._parked)[2])
        return due
