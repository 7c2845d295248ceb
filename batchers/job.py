"""A job: one call that waits for its result."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import msgspec

#: Stands for an item that has not been preprocessed yet (None is a valid item).
UNPREPARED: Any = type("Unprepared", (), {"__repr__": lambda _self: "UNPREPARED", "__slots__": ()})()


#: Why a batch is not larger. The first reason that holds is given.
CLOSED_BY: Mapping[str, str] = {
    "full": "it has as many jobs as a batch may have",
    "budget": "one more job would exceed the token budget, or what is known to fit into memory",
    "deadline": "it went before others because a job in it would have expired else",
    "age": "its time was up: max_wait_ms was over, or a job that had waited max_age_ms went before others",
    "nothing left": "no other waiting job goes with these",
    "cost": "one more job would cost more than it saves",
}


class JobState(IntEnum):
    """Where a job is on its way. The engine's scheduler has the table of who moves it from which state to which."""

    NEW = 0
    PREPARING = 1
    WAITING = 2
    CHOSEN = 3
    RUNNING = 4
    SETTLING = 5
    RETURNING = 6
    LEFT = 7


# msgspec's structs instead of dataclasses: one is made for every call, at a fifth of the cost.


class Job(msgspec.Struct, eq=False):
    """One call: what was asked, where it stands in line, and who waits for the answer.

    Times are seconds on the clock of the engine that holds the job (a monotonic one); the fronts convert.
    `reply` never travels through the model: it belongs to the front that took the job in.
    """

    id: str
    #: Name of the task that this call is for.
    task: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    #: Where the front sends the outcome: a future, or a claimed message.
    reply: Any
    #: When the caller sent it; when it was claimed, if the caller did not say.
    enqueued_at: float
    #: Claim sequence: first in, first out among equals goes by this number alone.
    seq: int = 0
    #: 0 is served first, 9 last, as Celery counts on Redis.
    priority: int = 0
    #: After this time nobody wants the answer any more; None: it never expires.
    deadline: float | None = None
    #: What `preprocess` made of the arguments: what the batcher gets.
    item: Any = UNPREPARED
    #: Tokens, rows, or whatever the batcher counts; None where nothing counts it.
    length: int | None = None
    #: Jobs of different shape classes never share a batch.
    shape_class: Any = None
    #: When it was claimed, and when it had its item.
    claimed_at: float = 0.0
    prepared_at: float = 0.0
    #: Bytes of its message, which is held as long as the job is; 0 where there is none.
    size: int = 0
    #: Changed by the engine's scheduler alone.
    state: JobState = JobState.NEW


class Outcome(msgspec.Struct, eq=False):
    """What became of a job: a value or an error, and the batch that it ran in."""

    job: Job
    value: Any = None
    error: BaseException | None = None
    #: The batch that it ran in; None when it failed before it was in one.
    batch: "Batch | None" = None


class Batch(msgspec.Struct, eq=False):
    """Jobs that run together.

    `started_at` and `finished_at` are seconds on the engine's clock, set by whoever runs the batch.
    """

    task: str
    jobs: list[Job]
    #: Why it is not larger: a key of `CLOSED_BY`.
    closed_by: str
    started_at: float = 0.0
    finished_at: float = 0.0
    #: Counts the batches of one engine; 0: it was not started by one.
    number: int = 0
    #: Jobs whose outcomes are settled.
    settled: int = 0
    #: Sizes, ascending, that it is padded up to by repeating an item; empty: it runs as it is.
    sizes: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Number of rows that the model computes: the jobs, and what is repeated to reach a size."""
        return next((size for size in self.sizes if size >= len(self.jobs)), len(self.jobs))

    @property
    def tokens(self) -> int:
        """Sum of the jobs' lengths: the real tokens."""
        return sum(job.length or 0 for job in self.jobs)

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that are padding, from 0 to 1."""
        return 1 - self.tokens / padded if (padded := self.padded_tokens) else 0.0

    @property
    def queue_s(self) -> float:
        """Seconds from enqueue to the batch's start, without `preprocess_s`, summed over its jobs."""
        return sum(self.started_at - job.enqueued_at for job in self.jobs) - self.preprocess_s

    @property
    def preprocess_s(self) -> float:
        """Seconds from the claim until a job could be chosen, summed over its jobs."""
        return sum(job.prepared_at - job.claimed_at for job in self.jobs)

    @property
    def run_s(self) -> float:
        """Seconds that it ran."""
        return self.finished_at - self.started_at

    def provenance(self, job: Job) -> dict[str, Any]:
        """Return what to tell one of its callers: which batch it was, how full and why, and where the time went."""
        return {
            "number": self.number,
            "size": len(self.jobs),
            "closed_by": self.closed_by,
            "padding_share": round(self.padding_share, 4),
            "queue_ms": round(1000 * (job.claimed_at - job.enqueued_at + self.started_at - job.prepared_at), 3),
            "preprocess_ms": round(1000 * (job.prepared_at - job.claimed_at), 3),
            "run_ms": round(1000 * self.run_s, 3),
        }

    @property
    def longest(self) -> int:
        """Length of the longest job; 0 where nothing counts lengths."""
        return max((job.length or 0 for job in self.jobs), default=0)

    @property
    def padded_tokens(self) -> int:
        """Rows times the longest job: what a padded model computes."""
        return self.rows * self.longest
