"""What one worker holds, as far as it knows: a table without I/O."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from operator import attrgetter

from .claims import Claim, Settlement
from .keys import Queue


class HeldClaims:
    """The claims of one worker. Any thread."""

    def __init__(self, *, lease_s: float) -> None:
        self.lease_s = lease_s
        #: Bytes of the messages held.
        self.held_bytes = 0
        #: Set when something was buffered that `Leases.flush` should send.
        self.has_buffered = threading.Event()
        self._acknowledgements: deque[Settlement] = deque()
        #: By whether their task has rejected them.
        self._to_give_back: dict[bool, deque[Claim]] = {False: deque(), True: deque()}
        self._lock = threading.Lock()
        self._held: dict[str, Claim] = {}
        self._held_of: Counter[str] = Counter()
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

    def _take(self, claims: Sequence[Claim]) -> None:
        with self._lock:
            self._held.update({claim.tag: claim for claim in claims})
            self._held_of.update([claim.queue.name for claim in claims])
            self.held_bytes += sum([len(claim.message) for claim in claims])

    def _forget(self, claims: Iterable[Claim], *, let_go: bool = False) -> None:
        """Hold these no longer, because the server does not hold them for us."""
        with self._lock:
            for claim in claims:
                if self._held.pop(claim.tag, None) is not None:
                    self._held_of[claim.queue.name] -= 1
                    self.held_bytes -= len(claim.message)
                if not let_go and self._let_go:
                    self._let_go.pop(claim.tag, None)
