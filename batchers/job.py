"""A job is one call that waits for its result; a batch is the jobs that run together.

The classes are msgspec structs and not dataclasses, because one is made for every call, at a fifth of the cost.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Literal

import msgspec

#: Why a batch is not larger: the first of these reasons that holds. docs/writing-a-model.md explains them to operators.
ClosedBy = Literal[
    "full",  # It has as many jobs as a batch may have.
    "budget",  # One more job would exceed the token budget or the token ceiling.
    "deadline",  # It ran before other jobs because one of its jobs would have expired otherwise.
    "age",  # max_wait_ms was over, or one of its jobs had waited max_age_ms and so ran before other jobs.
    "nothing left",  # No other waiting job can join it.
    "cost",  # One more job would cost more than it saves.
    "suspect",  # A worker died while it worked on this job, which therefore runs alone.
]


class JobState(IntEnum):
    """The stage of a job. The engine's job table lists which event moves a job from which state to which."""

    NEW = 0
    PREPARING = 1
    WAITING = 2
    CHOSEN = 3
    RUNNING = 4
    SETTLING = 5
    RETURNING = 6
    LEFT = 7


class Job(msgspec.Struct, eq=False):
    """One call: its arguments, its place in the queue, and the address of its reply.

    Times are seconds on the monotonic clock of the engine that holds the job. `reply` belongs to the side that took
    the job in, and never travels through the model.
    """

    id: str
    task: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    #: Where the outcome goes: a future, or a claimed message.
    reply: Any
    #: When the caller sent it, or when it was claimed if the caller did not say.
    enqueued_at: float
    #: Claim sequence, which alone decides who is first among equals.
    seq: int = 0
    #: 0 is served first and 9 last, as in Celery on Redis.
    priority: int = 0
    #: Time after which nobody wants the result any more; None: it never expires.
    deadline: float | None = None
    #: What `preprocess` made of the arguments, for the batcher; None until then.
    item: Any = None
    #: Tokens, rows, or whatever the batcher counts; None if it counts nothing.
    length: int | None = None
    #: Jobs of different shape classes never share a batch.
    shape_class: Any = None
    #: When it was claimed, and when its item was ready.
    claimed_at: float = 0.0
    prepared_at: float = 0.0
    #: Bytes of its message, which is held as long as the job is; 0 if there is none.
    size: int = 0
    #: Whether its message was delivered before, so that its worker died or hung, whatever it worked on then.
    redelivered: bool = False
    #: Leases on its message that ran out.
    lost: int = 0
    #: Of these, how many ran out while user code worked on it. It is a suspect from the first on, and runs alone.
    deaths: int = 0
    #: Of these deaths, how many came while user code worked on nothing else.
    lone_deaths: int = 0
    #: Changed by the engine's scheduler alone.
    state: JobState = JobState.NEW


class Outcome(msgspec.Struct, eq=False):
    """The end of a job: a value or an error."""

    job: Job
    value: Any = None
    error: BaseException | None = None
    #: The batch in which the job ran; None if it failed before it was in one.
    batch: "Batch | None" = None


class Batch(msgspec.Struct, eq=False):
    """Jobs that run together. Times are seconds on the engine's clock, set by the thread that runs the batch."""

    task: str
    jobs: list[Job]
    closed_by: ClosedBy
    started_at: float = 0.0
    finished_at: float = 0.0
    #: Number among the batches of its engine, from 1; 0 before an engine has started it.
    number: int = 0
    #: Whether the last batch of the task ran for next to no time, so that this one is expected to.
    quick: bool = False
    #: Number of jobs whose outcomes are settled.
    settled: int = 0
    #: Sizes, ascending, that the batch is padded up to by repeating an item; empty: no padding.
    sizes: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Number of rows that the model computes: the jobs, and the repeated items that fill up a size."""
        return next((size for size in self.sizes if size >= len(self.jobs)), len(self.jobs))

    @property
    def longest(self) -> int:
        """Length of the longest job; 0 if jobs have no lengths."""
        return max((job.length or 0 for job in self.jobs), default=0)

    @property
    def tokens(self) -> int:
        """Sum of the jobs' lengths, without padding."""
        return sum(job.length or 0 for job in self.jobs)

    @property
    def padded_tokens(self) -> int:
        """Rows times the longest job: the tokens that a padded model computes."""
        return self.rows * self.longest

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that are padding, from 0 to 1."""
        return 1 - self.tokens / padded if (padded := self.padded_tokens) else 0.0

    @property
    def queue_s(self) -> float:
        """Seconds from enqueue to the batch's start, without `preprocess_s`, summed over the jobs."""
        return sum(self.started_at - job.enqueued_at for job in self.jobs) - self.preprocess_s

    @property
    def preprocess_s(self) -> float:
        """Seconds from the claim until the item was ready, summed over the jobs."""
        return sum(job.prepared_at - job.claimed_at for job in self.jobs)

    @property
    def run_s(self) -> float:
        return self.finished_at - self.started_at

    def provenance(self, job: Job) -> dict[str, Any]:
        """Return what the caller of `job` is told: which batch ran it, how full and why, and where the time went."""
        return {
            "number": self.number,
            "size": len(self.jobs),
            "closed_by": self.closed_by,
            "padding_share": round(self.padding_share, 4),
            "queue_ms": round(1000 * (job.claimed_at - job.enqueued_at + self.started_at - job.prepared_at), 3),
            "preprocess_ms": round(1000 * (job.prepared_at - job.claimed_at), 3),
            "run_ms": round(1000 * self.run_s, 3),
        }
