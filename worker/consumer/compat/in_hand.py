"""The claims that Celery has in hand, from their handing over until they are taken back, acknowledged or given back."""

from collections.abc import Iterable, Set

from ...broker import Claim, Leases


class InHand:
    """Tags of claims, and which of them are in Celery's pool. Any thread."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._tags: set[str] = set()
        self._in_pool: set[str] = set()

    def __len__(self) -> int:
        return len(self._tags)

    @property
    def in_pool(self) -> Set[str]:
        """Plain tasks that wait for a thread of Celery's pool, or run there."""
        return self._in_pool.copy()

    @property
    def waiting(self) -> Set[str]:
        """What is not in the pool: it waits for Celery's handler, for its ETA or for its rate limit."""
        return self._tags - self._in_pool

    def add(self, claims: Iterable[Claim]) -> None:
        """Note that Celery gets these."""
        self._tags.update(claim.tag for claim in claims)

    def enter_pool(self, tag: str) -> bool:
        """Note that a plain task goes to the pool; return False if its message was lost while it waited."""
        if self._leases.find(tag) is None:
            self.take_back(tag)
            return False
        self._in_pool.add(tag)
        return True

    def take_back(self, tag: str) -> Claim | None:
        """Note that Celery has a message no longer; return its claim, or None if it was lost."""
        self._tags.discard(tag)
        self._in_pool.discard(tag)
        return self._leases.find(tag)

    def forget_lost(self) -> None:
        """Stop counting messages whose lease was lost, because nobody will acknowledge them."""
        for tag in self._tags.copy():
            if self._leases.find(tag) is None:
                self.take_back(tag)
