"""A front: where the engine's jobs come from and where their outcomes go."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from ...batchers import Batch, Job, Outcome


class Room(NamedTuple):
    """How much more of one task may be held."""

    jobs: int
    #: Of messages, as `Job.size` counts them.
    bytes: int


class Front(Protocol):
    """One side of the engine: Redis behind Celery's worker, or a local queue behind `Host`.

    Each method is called from one thread of the engine, named with it; it must not raise for what a front can mend by
    itself, such as a lost connection.
    """

    def claim(self, rooms: Mapping[str, Room]) -> list[Job]:
        """Wait for work and take it; an empty list every now and then is fine. Claim thread.

        `rooms` says how much of each task; of one that is missing, nothing. A front that cannot tell beforehand what it
        takes may take more of a task than it has room for, once, and then none until there is room again.
        """
        ...

    def interrupt(self) -> None:
        """Make a `claim` that waits, and every later one, return at once. Any thread."""
        ...

    def current(self, job: Job) -> AbstractContextManager[object]:
        """Return a context in which the job's hooks run, such as its task's current request. Preprocess threads."""
        ...

    def drop_cancelled(self, jobs: list[Job]) -> list[Job]:
        """Leave out jobs that nobody wants any more (revoked, expired, cancelled), and answer those. Device thread."""
        ...

    def started(self, batch: Batch) -> None:
        """Take note that these jobs run now. Device thread."""
        ...

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Store the outcomes and acknowledge their jobs. Settle thread."""
        ...

    def give_back(self, jobs: Sequence[Job]) -> None:
        """Put jobs that have not run back to where they were claimed, in order. Any thread."""
        ...

    def broken(self, error: Exception) -> None:
        """Learn that a thread of the engine died of `error`: no job will be served any more. Any thread."""
        ...
