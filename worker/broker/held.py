"""What one worker holds, as far as it knows: a table without I/O."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from operator import attrgetter

from .claims import Claim, HeldAs, Settlement
from .keys import Queue


class HeldClaims:
    """The claims of one worker. Any thread."""

    def __init__(self, *, lease_s: float) -> None:
        self.lease_s = lease_s
        #: Set when something was buffered that `Leases.flush` should send.
        self.has_buffered = threading.Event()
        self._acknowledgements: deque[Settlement] = deque()
        #: By whether their task has rejected them.
        self._to_give_back: dict[bool, deque[Claim]] = {False: deque(), True: deque()}
        self._lock = threading.Lock()
        self._held: dict[str, Claim] = {}
        self._held_of: Counter[str] = Counter()
        #: Those of them that are jobs, by queue and priority; and all, by what they are held as.
        self._jobs_of: Counter[tuple[str, int]] = Counter()
        self._counts = [0] * len(HeldAs)
        self._bytes = [0] * len(HeldAs)
        #: The queues that were claimed from, by name.
        self._queues: dict[str, Queue] = {}
        #: Claims that were let go, by tag, with the time on the monotonic clock at which they go back.
        self._let_go: dict[str, tuple[float, Claim]] = {}

    def holds(self, claim: Claim) -> bool:
        """Return whether a claim is ours as far as this worker knows."""
        return claim.tag in self._held

    def find(self, tag: str) -> Claim | None:
        """Return the claim of that tag, if it is ours."""
        return self._held.get(tag)

    def held(self) -> list[Claim]:
        """Return every claim that is ours, in claim order."""
        with self._lock:
            return sorted(self._held.values(), key=attrgetter("seq"))

    def count(self, held_as: HeldAs) -> int:
        """Return how many claims are held as this."""
        return self._counts[held_as]

    def bytes_of(self, *held_as: HeldAs) -> int:
        """Return the bytes of all claims that are held as one of these."""
        return sum(self._bytes[one] for one in held_as)

    def jobs_of(self, queue: Queue) -> list[int]:
        """Return how many jobs of a queue are held, for each priority."""
        return [self._jobs_of[queue.name, priority] for priority in queue.priorities]

    def aside_of(self, queue: Queue) -> int:
        """Return how many messages of a queue are held that are no jobs."""
        return self._held_of[queue.name] - sum(self.jobs_of(queue))

    def change(self, claim: Claim, held_as: HeldAs, size: int) -> None:
        """Hold a claim as something else, or with another number of bytes."""
        with self._lock:
            is_held = claim.tag in self._held
            if is_held:
                self._count(claim, -1)
            claim.held_as, claim.size = held_as, size
            if is_held:
                self._count(claim, 1)

    @property
    def buffered(self) -> set[str]:
        """The tags of what is to be sent to the server."""
        claims = [claim for buffer in self._to_give_back.values() for claim in buffer.copy()]
        return {claim.tag for claim in claims} | {settlement.claim.tag for settlement in self._acknowledgements.copy()}

    def acknowledge(self, claim: Claim) -> None:
        """Buffer an acknowledgement, which the next `settle` or `flush` sends. Never blocks."""
        self._acknowledgements.append(Settlement(claim))
        self.has_buffered.set()

    def give_back_soon(self, claim: Claim, *, rejected: bool = False) -> None:
        """Buffer a claim, which the next `flush` gives back, as `give_back` does. Never blocks."""
        self._to_give_back[rejected].append(claim)
        self.has_buffered.set()

    def let_go(self, claims: Iterable[Claim]) -> None:
        """Stop holding these, which go back after the length of a lease. Never blocks."""
        for claim in claims:
            if claim.tag in self._held:
                self._let_go[claim.tag] = time.monotonic() + self.lease_s, claim
                self._forget([claim], let_go=True)

    def _knows(self, tag: str) -> bool:
        """Return whether a message is held, or was let go and has not gone back."""
        return tag in self._held or tag in self._let_go

    def _queues_of_held(self) -> list[Queue]:
        with self._lock:
            return [self._queues[name] for name, count in self._held_of.items() if count]

    def _kept(self) -> list[Claim]:
        """Return the claims that were let go and have not gone back."""
        return [claim for _, claim in [*self._let_go.values()]]

    def _due(self) -> list[Claim]:
        """Return the claims that were let go one lease ago."""
        now = time.monotonic()
        return [claim for at, claim in [*self._let_go.values()] if at <= now] if self._let_go else []

    def _take(self, lists: Iterable[Sequence[Claim]]) -> None:
        """Hold claims, those of each list of a queue together, as jobs."""
        with self._lock:
            for claims in lists:
                name, count = claims[0].queue.name, len(claims)
                self._held.update([(claim.tag, claim) for claim in claims])
                self._held_of[name] += count
                self._jobs_of[name, claims[0].priority] += count
                self._counts[HeldAs.JOB] += count
                self._bytes[HeldAs.JOB] += sum([claim.size for claim in claims])

    def _forget(self, claims: Iterable[Claim], *, let_go: bool = False) -> None:
        """Hold these no longer, because the server does not hold them for us."""
        jobs = size = 0  # counted here, because this runs for each job
        with self._lock:
            for claim in claims:
                if self._held.pop(claim.tag, None) is not None:
                    name = claim.queue.name
                    self._held_of[name] -= 1
                    if claim.held_as is HeldAs.JOB:
                        self._jobs_of[name, claim.priority] -= 1
                        jobs, size = jobs + 1, size + claim.size
                    else:
                        self._count(claim, -1)
                if not let_go and self._let_go:
                    self._let_go.pop(claim.tag, None)
            self._counts[HeldAs.JOB] -= jobs
            self._bytes[HeldAs.JOB] -= size

    def _count(self, claim: Claim, change: int) -> None:
        self._counts[claim.held_as] += change
        self._bytes[claim.held_as] += change * claim.size
        if claim.held_as is HeldAs.JOB:
            self._jobs_of[claim.queue.name, claim.priority] += change
