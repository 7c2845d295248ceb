"""Which jobs are held, and the state of each: a table without I/O, threads or clock.

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

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from ...batchers import CostModel, GreedyPlanner, Job, JobState, Planner, TokenCeiling
from ...configs import TaskOptions
from .ports import Capacity
from .stats import Stats

_NEW, _PREPARING, _WAITING, _CHOSEN, _RUNNING, _SETTLING, _RETURNING, _LEFT = JobState

#: Each move: the states that it starts from, and the state that it leads to.
MOVES: Mapping[str, tuple[Sequence[JobState], JobState]] = {
    "claimed": ([_NEW], _PREPARING),
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


_size = attrgetter("size")


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
    #: Seconds that the last batch ran.
    last_run_s: float = float("inf")
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


class JobTable:
    """Moves jobs from state to state. Not thread-safe: one lock of the engine guards it."""

    def __init__(self, tasks: Mapping[str, TaskState]) -> None:
        """Start with nothing held; `tasks` are by name."""
        self.tasks = tasks
        #: The jobs that were claimed and have not left.
        self.jobs: set[Job] = set()
        #: Jobs by state.
        self._counts = [0] * len(JobState)
        #: Whether no more jobs are to be claimed or run.
        self.draining = False

    def count(self, state: JobState) -> int:
        """Return how many jobs are in a state."""
        return self._counts[state]

    @property
    def held(self) -> int:
        """Number of jobs that were claimed and have not left."""
        return len(self.jobs)

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
        """Hold jobs of one task that came in: their items are to be made."""
        task = self.tasks[jobs[0].task]
        task.jobs += len(jobs)
        task.bytes += sum(map(_size, jobs))
        self.move("claimed", jobs)
        self.jobs.update(jobs)

    def left(self, jobs: Sequence[Job], move: str) -> None:
        """Hold jobs no longer, because they were "settled", "given back" or "dropped"."""
        self.move(move, jobs)
        self.jobs.difference_update(jobs)
        for job in jobs:
            task = self.tasks[job.task]
            task.jobs -= 1
            task.bytes -= job.size

    def move(self, move: str, jobs: Sequence[Job]) -> None:
        """Make one of `MOVES` with each job; a job in another state raises a RuntimeError."""
        sources, target = MOVES[move]
        states = [job.state for job in jobs]
        for state in set(states):
            if state not in sources:
                job = jobs[states.index(state)]
                raise RuntimeError(f"Job {job.id} is {state.name} and cannot be {move}. This is a bug in Batchery.")
            self._counts[state] -= states.count(state)
        for job in jobs:
            job.state = target
        self._counts[target] += len(jobs)
