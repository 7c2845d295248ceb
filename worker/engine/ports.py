"""What an engine is connected to: where its jobs come from, and where their outcomes go.

The engine calls its source and its sink. Neither of them knows the engine, but both may use its `EngineState`, which
exists before them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from ...batchers import Batch, Job, Outcome


class Capacity(NamedTuple):
    """How much more of one task may be held."""

    jobs: int
    #: Bytes of messages, as `Job.size` counts them.
    bytes: int


class JobSource(Protocol):
    """Where jobs come from: Redis behind Celery's worker, or the local queue of a `Host`.

    A source must not raise for what it can mend by itself, such as a lost connection.
    """

    def claim(self, capacity: Mapping[str, Capacity]) -> list[Job]:
        """Wait for jobs and take them; an empty list every now and then is fine. Claim thread.

        `capacity` maps each task to its free capacity, and a missing task has none. A source that learns a message's
        task only by taking the message may exceed the limit once for each queue, and then waits for capacity.
        """

    def give_back(self, jobs: Sequence[Job]) -> None:
        """Put jobs that have not run back to where they came from, in order. Any thread."""

    def interrupt(self) -> None:
        """Make a `claim` that waits, and every later one, return at once. Any thread."""


class ResultSink(Protocol):
    """Where outcomes go: to Redis through Celery's result format, or to the futures of a `Host`.

    A sink must not raise for what it can mend by itself, such as a lost connection.
    """

    def current(self, job: Job) -> AbstractContextManager[object]:
        """Return a context in which the job's hooks run, such as its task's current request.

        Preprocess threads, and the thread that settles.
        """

    def drop_cancelled(self, jobs: list[Job]) -> list[Job]:
        """Return the jobs that somebody still wants, and answer the others: revoked, expired or cancelled ones.

        Device thread and collate thread, so that a job may be asked about twice.
        """

    def admits(self, batch: Batch) -> bool:
        """Return whether a suspect may run now, because nobody else runs one. Device thread."""

    def working(self, jobs: Sequence[Job], *, begins: bool) -> None:
        """Learn that user code begins, or ends, to work on jobs on this thread. Any thread.

        Told only if one of the jobs was redelivered, because a worker may have died of it.
        """

    def started(self, batch: Batch) -> None:
        """Learn that a batch runs now. Device thread."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Store the outcomes and acknowledge their jobs. Settle thread or device thread, one of them at a time."""

    def broken(self, error: Exception) -> None:
        """Learn that a thread of the engine died of `error`, so that no job will be served any more. Any thread."""
