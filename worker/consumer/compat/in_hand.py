"""The claims that Celery has in hand, from their handing over until they are taken back, acknowledged or given back."""

from collections.abc import Set

from ...broker import Claim, HeldAs, Leases

#: What Celery has in hand.
IN_HAND = (HeldAs.BRIDGED, HeldAs.PLAIN, HeldAs.POOLED, HeldAs.ETA)


class InHand:
    """The tags of such claims, and which of them are in Celery's pool. Any thread."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    @property
    def in_pool(self) -> Set[str]:
        """Plain tasks that wait for a thread of Celery's pool, or run there."""
        return {claim.tag for claim in self._leases.held() if claim.held_as is HeldAs.POOLED}

    @property
    def waiting(self) -> list[str]:
        """What is not in the pool, in claim order: it waits for Celery's handler, its ETA or its rate limit."""
        waits = {*IN_HAND} - {HeldAs.POOLED}
        return [claim.tag for claim in self._leases.held() if claim.held_as in waits]

    def enter_pool(self, tag: str) -> bool:
        """Note that a plain task goes to the pool; return False if its message was lost while it waited."""
        claim = self._leases.find(tag)
        if claim is not None:
            self._leases.change(claim, HeldAs.POOLED, claim.size)
        return claim is not None

    def take_back(self, tag: str) -> Claim | None:
        """Note that Celery has a message no longer; return its claim, or None if it was lost."""
        claim = self._leases.find(tag)
        if claim is not None:
            self._leases.change(claim, HeldAs.JOB, len(claim.message))
        return claim
