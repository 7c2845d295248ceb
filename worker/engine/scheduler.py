"""What is held, and what runs next: a state machine without I/O, threads or clock, because the time is an argument.

1. Every job that was claimed and has not left is in exactly one state, and the owner of that state moves it on.
2. `MOVES` lists every move. A move from another state is a bug and raises an error.
3. The jobs and bytes held of one task are bounded over all states together, so that no stage can pile up behind a slow
   one, and for each task by itself, so that no task's backlog keeps the jobs of another one out.

state      | its owner
-----------|---------------------------------------------------------------------------------------------
PREPARING  | the claim thread or a preprocess thread, which makes the job's item
WAITING    | nobody: the planner may choose it
CHOSEN     | the device thread or the collate thread: its batch is put together, or is ready and waits for the device
RUNNING    | the device thread
SETTLING   | the settle thread, or the device thread where it settles by itself
RETURNING  | the thread that drains the engine, or the thread that found the job after the drain had begun
LEFT       | nobody: it was settled, given back, or dropped because nobody wants it any more
"""

from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter

from ...batchers import Batch, CostModel, GreedyPlanner, Job, JobState, Planner, TokenCeiling
from ...batchers.planning.token_ceiling import batch_tokens
from ...configs import TaskOptions
from .. import tuning
from .ports import Capacity
from .stats import DeviceTime, Stats

NEVER = float("inf")

_NEW, _PREPARING, _WAITING, _CHOSEN, _RUNNING, _SETTLING, _RETURNING, _LEFT = JobState

#: Each move: the states that it starts from, and the state that it leads to.
MOVES: Mapping[str, tuple[Sequence[JobState], JobState]] = {
    "claimed": ([_NEW, _LEFT], _PREPARING),  # a job that left may be submitted again
    "failed": ([_PREPARING], _SETTLING),
    "prepared": ([_PREPARING], _WAITING),
    "chosen": ([_WAITING], _CHOSEN),
    "reopened": ([_CHOSEN], _WAITING),
    "started": ([_CHOSEN], _RUNNING),
    "ran": ([_RUNNING], _SETTLING),
    "settled": ([_SETTLING], _LEFT),
    "dropped": ([_CHOSEN], _LEFT),
    "returned": ([_PREPARING, _WAITING, _CHOSEN], _RETURNING),
    "given back": ([_RETURNING], _LEFT),
}

_seq = attrgetter("seq")


@dataclass(slots=True)
class TaskState:
    """What is known and held of one task."""

    options: TaskOptions
    max_bytes: int
    planner: Planner
    cost: CostModel
    ceiling: TokenCeiling
    #: Prepared jobs in claim order, from which the planner chooses.
    waiting: list[Job] = field(default_factory=list)
    #: Groups of jobs that no preprocess thread has begun with.
    unprepared: deque[list[Job]] = field(default_factory=deque)
    jobs: int = 0
    bytes: int = 0
    stats: Stats = field(default_factory=Stats)

    @classmethod
    def create(cls, options: TaskOptions, max_bytes: int, planner: Planner | None = None) -> "TaskState":
        """Hold nothing yet. `planner` defaults to a `GreedyPlanner` that uses the task's measured costs."""
        cost = CostModel(options.max_batch_size, options.max_batch_tokens, options.preferred_batch_sizes)
        ceiling = TokenCeiling()
        return cls(options, max_bytes, planner or GreedyPlanner(options, cost, ceiling), cost, ceiling)

    @property
    def capacity(self) -> Capacity | None:
        """What may be claimed now; None until an eighth is free, because a smaller claim is not worth a round trip."""
        # The jobs that wait, and one batch each that runs, is put together and is being settled.
        max_jobs = self.options.max_waiting + 3 * self.options.max_batch_size
        free = Capacity(max_jobs - self.jobs, self.max_bytes - self.bytes)
        enough = free.jobs >= max(1, max_jobs // 8) and free.bytes >= max(1, self.max_bytes // 8)
        return free if enough else None


class Scheduler:
    """Moves jobs between states, and chooses batches. Not thread-safe: one lock of the engine guards it."""

    def __init__(self, tasks: Mapping[str, TaskState]) -> None:
        """Start with nothing held; `tasks` are by name."""
        self.tasks = tasks
        #: Jobs by state.
        self._counts = [0] * len(JobState)
        self.running: Batch | None = None
        #: Batches that have run and are not settled.
        self._unsettled_batches = 0
        self.draining = False
        self.device_time = DeviceTime()
        self._numbers = count(1)

    def _move(self, move: str, jobs: Sequence[Job]) -> None:
        sources, target = MOVES[move]
        counts = self._counts
        for job in jobs:
            state = job.state
            if state not in sources:
                raise RuntimeError(f"Job {job.id} is {state.name} and cannot be {move}. This is a bug in Batchery.")
            counts[state] -= 1
            job.state = target
        counts[target] += len(jobs)

    # -- What is held ------------------------------------------------------------------------------------------------

    def count(self, state: JobState) -> int:
        """Return how many jobs are in a state."""
        return self._counts[state]

    @property
    def held(self) -> int:
        """Jobs that were claimed and have not left."""
        return sum(task.jobs for task in self.tasks.values())

    @property
    def capacity(self) -> dict[str, Capacity]:
        """What may be claimed now, by task; a task without free capacity is missing."""
        if self.draining:
            return {}
        return {name: capacity for name, task in self.tasks.items() if (capacity := task.capacity)}

    @property
    def full(self) -> bool:
        """Whether there are tasks, and none of them has free capacity."""
        return bool(self.tasks) and not self.capacity

    def claimed(self, jobs: Sequence[Job]) -> None:
        """Hold jobs that came in: their items are to be made."""
        for job in jobs:
            task = self.tasks[job.task]
            task.jobs += 1
            task.bytes += job.size
        self._move("claimed", jobs)

    def left(self, jobs: Sequence[Job], move: str) -> None:
        """Hold jobs no longer, because they were "settled", "given back" or "dropped"."""
        self._move(move, jobs)
        for job in jobs:
            task = self.tasks[job.task]
            task.jobs -= 1
            task.bytes -= job.size

    # -- Preparing ---------------------------------------------------------------------------------------------------

    def next_unprepared(self) -> list[Job]:
        """Take a group of jobs that a preprocess thread is to prepare: the one that was claimed first; [] for none."""
        groups = [task.unprepared for task in self.tasks.values() if task.unprepared]
        return min(groups, key=lambda group: group[0][0].seq).popleft() if groups else []

    def prepared(self, jobs: Sequence[Job], now: float) -> None:
        """Let prepared jobs wait for the planner, in claim order, whichever was prepared first."""
        self._move("prepared", jobs)
        for job in jobs:
            job.prepared_at = now
            waiting = self.tasks[job.task].waiting
            if not waiting or waiting[-1].seq < job.seq:
                waiting.append(job)
            else:
                insort(waiting, job, key=_seq)

    def failed(self, jobs: Sequence[Job]) -> None:
        """Let jobs without an item be settled."""
        self._move("failed", jobs)

    # -- Running -----------------------------------------------------------------------------------------------------

    @property
    def work_waits(self) -> bool:
        """Whether a job waits for the device."""
        return self._counts[_WAITING] > 0

    @property
    def results_wait(self) -> bool:
        """Whether so many results wait to be stored that no other batch should start before some are."""
        many = self._counts[_SETTLING] >= tuning.MAX_UNSETTLED_JOBS
        return many and self._unsettled_batches >= tuning.MAX_UNSETTLED_BATCHES

    def next_batch(self, now: float, *, closed: bool = False) -> Batch | None:
        """Take the batch that runs now: that of the task with the oldest job among those that are due.

        Where it must be `closed`, a batch that other jobs may still join is left alone.
        """
        if self.draining:
            return None
        for task in sorted(
            (task for task in self.tasks.values() if task.waiting), key=lambda task: task.waiting[0].seq
        ):
            batch = task.planner.choose(task.waiting, now)
            if batch is not None:
                if closed and batch.closed_by == "nothing left":
                    return None
                self._take(task, batch.jobs)
                return batch
        return None

    def wake_at(self) -> float:
        """Return when `next_batch` is worth asking again although nothing came in."""
        if self.draining:
            return NEVER
        return min((task.planner.due_at(task.waiting) for task in self.tasks.values() if task.waiting), default=NEVER)

    def reopen(self, batch: Batch) -> None:
        """Let the jobs of a batch that does not run yet wait again."""
        self._move("reopened", batch.jobs)
        task = self.tasks[batch.task]
        task.waiting = sorted([*batch.jobs, *task.waiting], key=_seq)

    def started(self, batch: Batch, now: float) -> None:
        """Note that a batch runs."""
        self._move("started", batch.jobs)
        batch.started_at = now
        batch.number = next(self._numbers)
        self.running = batch
        self.device_time.started(now)

    def ran(self, jobs: Sequence[Job]) -> None:
        """Note that jobs of the running batch have outcomes, which are to be settled."""
        self._move("ran", jobs)

    def finished(self, batch: Batch, *, whole: bool, more: bool) -> None:
        """Note that the running batch is through: `whole` if in one piece, `more` if the next one is chosen."""
        self.running = None
        self._unsettled_batches += 1
        if whole:
            task = self.tasks[batch.task]
            task.cost.observe(batch.rows, batch.longest, 1000 * batch.run_s)
            task.ceiling.succeeded(batch_tokens(batch.jobs))
        more = more or self.work_waits or self._counts[_PREPARING] > 0
        self.device_time.finished(batch, work_waits=more)

    def out_of_memory(self, jobs: Sequence[Job]) -> None:
        """Note that these jobs of one batch did not fit into memory together."""
        task = self.tasks[jobs[0].task]
        task.stats.out_of_memory += 1
        task.ceiling.failed(batch_tokens(jobs), len(jobs))

    def settled(self, batch: Batch, now: float) -> None:
        """Note that all jobs of a batch are settled."""
        self._unsettled_batches -= 1
        self.tasks[batch.task].stats.add(batch, now)

    def returned(self, jobs: Sequence[Job]) -> None:
        """Let jobs that do not run be given back."""
        self._move("returned", jobs)

    def drain(self) -> list[Job]:
        """Start no more batches; return the jobs that are to be given back because nobody has begun with them."""
        self.draining = True
        jobs: list[Job] = []
        for task in self.tasks.values():
            jobs += task.waiting
            jobs += (job for group in task.unprepared for job in group)
            task.waiting.clear()
            task.unprepared.clear()
        self.returned(jobs)
        return jobs

    def _take(self, task: TaskState, jobs: Sequence[Job]) -> None:
        self._move("chosen", jobs)
        if task.waiting[: len(jobs)] == jobs:
            del task.waiting[: len(jobs)]
        else:
            task.waiting[:] = [job for job in task.waiting if job.state is _WAITING]
