"""The book of what one worker holds: which messages, as what, and how many bytes of them."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter

from .claims import Claim, HeldAs
from .keys import Queue

_seq = attrgetter("seq")


class HeldClaims:
    """The claims of one worker, counted by what they are held as. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[str, Claim] = {}
        self._counts = [0] * len(HeldAs)
        self._bytes = [0] * len(HeldAs)
        #: Jobs, by queue and priority; and everything else, by queue.
        self._jobs: Counter[tuple[str, int]] = Counter()
        self._aside: Counter[str] = Counter()

    def find(self, tag: str) -> Claim | None:
        """Return the claim of that tag, if it is held."""
        return self._claims.get(tag)

    def in_order(self) -> list[Claim]:
        """Return all claims, in claim order."""
        with self._lock:
            return sorted(self._claims.values(), key=_seq)

    def add(self, claims: Sequence[Claim]) -> None:
        """Hold claims as jobs."""
        with self._lock:
            self._claims.update([(claim.tag, claim) for claim in claims])
            self._jobs.update([(claim.queue.name, claim.priority) for claim in claims])
            self._counts[HeldAs.JOB] += len(claims)
            self._bytes[HeldAs.JOB] += sum([claim.size for claim in claims])

    def remove(self, claims: Iterable[Claim]) -> None:
        """Hold these no longer, as far as they were held."""
        with self._lock:
            for claim in claims:
                if self._claims.pop(claim.tag, None) is not None:
                    self._count(claim, -1)

    def change(self, claim: Claim, held_as: HeldAs, size: int) -> None:
        """Hold a claim as something else, or with another number of bytes."""
        with self._lock:
            is_held = claim.tag in self._claims
            if is_held:
                self._count(claim, -1)
            claim.held_as, claim.size = held_as, size
            if is_held:
                self._count(claim, 1)

    def count(self, held_as: HeldAs) -> int:
        """Return how many claims are held as this."""
        return self._counts[held_as]

    def bytes(self, *held_as: HeldAs) -> int:
        """Return the bytes of all claims that are held as one of these."""
        return sum(self._bytes[one] for one in held_as)

    def jobs_of(self, queue: Queue) -> list[int]:
        """Return how many jobs of a queue are held, for each priority."""
        return [self._jobs[queue.name, priority] for priority in queue.priorities]

    def aside_of(self, queue: Queue) -> int:
        """Return how many messages of a queue are held that are no jobs."""
        return self._aside[queue.name]

    def _count(self, claim: Claim, change: int) -> None:
        held_as = claim.held_as
        self._counts[held_as] += change
        self._bytes[held_as] += change * claim.size
        if held_as is HeldAs.JOB:
            self._jobs[claim.queue.name, claim.priority] += change
        else:
            self._aside[claim.queue.name] += change
