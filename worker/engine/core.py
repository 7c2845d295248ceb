"""The engine's decisions, as a state machine without I/O, threads or clock: the time is an argument.

A job is, in this order, preparing, waiting, running, settling; from each of these it may leave. What is bounded is
everything held together, so that no stage can pile up behind a slow one.
"""

from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...batchers import Batch, Job, Planner
from ...configs import TaskOptions


@dataclass(slots=True)
class Counts:
    """What an engine has done since it started."""

    batches: int = 0
    jobs: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    failed: int = 0

    @property
    def mean_batch_size(self) -> float:
        """Jobs a batch."""
        return self.jobs / self.batches if self.batches else 0.0

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that were padding, from 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


class Core:
    """What is held, and what runs next. Not thread-safe: its engine guards it with one lock."""

    def __init__(self, options: Mapping[str, TaskOptions], planners: Mapping[str, Planner]) -> None:
        """Start with nothing held; both mappings are by task name."""
        self._planners = planners
        self._waiting: dict[str, list[Job]] = {name: [] for name in planners}
        widest = max(options.values(), key=lambda option: option.max_waiting, default=TaskOptions())
        #: What waits, and a batch each that runs, is put together and is being settled.
        self._most_held = widest.max_waiting + 3 * widest.max_batch_size
        self._least_claimed = max(1, self._most_held // 8)
        self._held = 0
        #: Jobs that came in and neither wait nor have left.
        self.preparing = 0
        self.running: Batch | None = None
        self.draining = False
        self.counts = Counts()

    @property
    def held(self) -> int:
        """Jobs that were claimed and have not left."""
        return self._held

    @property
    def room(self) -> int:
        """How many jobs may be claimed now: none until a claim is worth its round trip."""
        room = self._most_held - self._held
        return 0 if self.draining or room < self._least_claimed else room

    @property
    def nothing_waits(self) -> bool:
        """Whether no job waits for the device."""
        return not any(self._waiting.values())

    def claimed(self, count: int) -> None:
        """Take note of jobs that came in; they are preparing until `prepared` or `unprepared` says otherwise."""
        self._held += count
        self.preparing += count

    def prepared(self, jobs: Iterable[Job]) -> None:
        """Let prepared jobs wait for the planner, in claim order, whichever was prepared first."""
        for job in jobs:
            self.preparing -= 1
            waiting = self._waiting[job.task]
            if not waiting or waiting[-1].seq < job.seq:
                waiting.append(job)
            else:
                insort(waiting, job, key=_seq)

    def unprepared(self, count: int) -> None:
        """Take note of jobs that failed in preparation, or were not prepared any more; they are still held."""
        self.preparing -= count

    def next_batch(self, now: float) -> Batch | None:
        """Take the batch that runs now: that of the task with the oldest job among those that are due."""
        if self.draining:
            return None
        for name in sorted(
            filter(self._waiting.__getitem__, self._waiting), key=lambda name: self._waiting[name][0].seq
        ):
            batch = self._planners[name].choose(self._waiting[name], now)
            if batch is not None:
                self._remove(batch)
                return batch
        return None

    def wake_at(self) -> float:
        """Return when `next_batch` is worth asking again though nothing came in."""
        if self.draining:
            return _NEVER
        return min((self._planners[name].due_at(jobs) for name, jobs in self._waiting.items() if jobs), default=_NEVER)

    def started(self, batch: Batch, now: float) -> None:
        """Take note that a batch runs."""
        batch.started_at = now
        self.running = batch

    def finished(self, batch: Batch) -> None:
        """Take note that the running batch is through."""
        self.running = None
        self.counts.batches += 1
        self.counts.jobs += len(batch.jobs)
        self.counts.tokens += batch.tokens
        self.counts.padded_tokens += batch.padded_tokens

    def left(self, count: int) -> None:
        """Take note of jobs that are no longer held: settled, given back, or withdrawn."""
        self._held -= count

    def drain(self) -> list[Job]:
        """Stop starting batches; return the jobs that wait, in claim order: they are to be given back."""
        self.draining = True
        jobs = sorted((job for waiting in self._waiting.values() for job in waiting), key=_seq)
        for waiting in self._waiting.values():
            waiting.clear()
        return jobs

    def _remove(self, batch: Batch) -> None:
        waiting = self._waiting[batch.task]
        if waiting[: len(batch.jobs)] == batch.jobs:
            del waiting[: len(batch.jobs)]
        else:
            chosen = set(map(id, batch.jobs))
            waiting[:] = [job for job in waiting if id(job) not in chosen]


_NEVER = float("inf")


def _seq(job: Job) -> int:
    return job.seq
