"""The claims that one worker holds."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import TypeVar

import msgspec

from .keys import Queue

T = TypeVar("T")


class Claim(msgspec.Struct, eq=False, gc=False):
    """A message that is ours for the time of its lease."""

    tag: str
    queue: Queue
    message: bytes
    #: Position in this worker's claims.
    seq: int


def by_queue(items: Iterable[T], queue_name: Callable[[T], str]) -> Iterable[list[T]]:
    """Group `items` by the name of their queue, in order."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(queue_name(item), []).append(item)
    return groups.values()


class HeldClaims:
    """The claims that this worker holds, as far as it knows. Any thread."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._lock = threading.Lock()
        self._by_tag: dict[str, Claim] = {}
        self._count: Counter[str] = Counter()
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the messages held."""
        return self._bytes

    def holds(self, claim: Claim) -> bool:
        """Return whether a claim is ours. The server may know better: see `Leases.still_held`."""
        return claim.tag in self._by_tag

    def find(self, tag: str) -> Claim | None:
        """Return the claim of that tag, if it is ours."""
        return self._by_tag.get(tag)

    def held(self) -> list[Claim]:
        """Return every claim that is ours, in claim order."""
        with self._lock:
            return sorted(self._by_tag.values(), key=attrgetter("seq"))

    def count(self, queue: Queue) -> int:
        """Return how many messages of a queue are ours."""
        return self._count[queue.name]

    def add(self, queue: Queue, claims: Sequence[Claim]) -> None:
        """Hold these claims, all of one queue."""
        with self._lock:
            self._by_tag.update({claim.tag: claim for claim in claims})
            self._count[queue.name] += len(claims)
            self._bytes += sum([len(claim.message) for claim in claims])

    def forget(self, claims: Iterable[Claim]) -> None:
        """Hold these no longer: they are not refreshed, so their leases run out unless they were settled."""
        with self._lock:
            for claim in claims:
                if self._by_tag.pop(claim.tag, None) is not None:
                    self._count[claim.queue.name] -= 1
                    self._bytes -= len(claim.message)
