"""What the engine, its source and its sink share: what is held, what may come in, and when. It exists before them."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ...batchers import Job, Planner
from ...configs import TaskOptions, WorkerOptions
from .job_table import TaskState
from .model import Model
from .ports import Capacity
from .scheduler import Scheduler
from .user_code import UserCode


class EngineState(UserCode):
    """The models and their scheduler, under one lock. Sources and sinks use the first part of it."""

    def __init__(
        self,
        models: Mapping[str, Model],
        options: WorkerOptions,
        *,
        planners: Mapping[str, Planner] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold nothing yet. `models` and `planners` are by task name; a task without a planner gets the default one."""
        super().__init__(clock)
        self.models = models
        self.options = options
        max_bytes = options.held_max_bytes // max(1, len(models))
        self.tasks = {
            name: TaskState.create(model.options, max_bytes, (planners or {}).get(name))
            for name, model in models.items()
        }
        self.scheduler = Scheduler(self.tasks)
        # Each thing that a thread may wait for has a condition, because waking the wrong thread costs the GIL twice.
        # The one lock of all of them guards the scheduler, and is never held during I/O or user code.
        self.lock = threading.Lock()
        self.claimable = threading.Condition(self.lock)
        self.unprepared = {name: threading.Condition(self.lock) for name in models}
        #: A job left, or will never leave, while the engine drains.
        self.drained = threading.Condition(self.lock)
        #: Set when a job has left; cleared before each claim.
        self._freed = threading.Event()

    # -- For sources and sinks, and any thread of theirs -------------------------------------------------------------

    @property
    def hung_jobs(self) -> list[Job]:
        """The jobs on which user code has worked for longer than their task's `batch_time_limit_s`: it hangs."""
        now = self.clock()
        working = list(self._working.values())
        return [job for jobs, since in working if now - since > self.time_limit_of(jobs[0]) for job in jobs]

    @property
    def hung(self) -> bool:
        """Whether user code hangs."""
        return bool(self.hung_jobs)

    def time_limit_of(self, job: Job) -> float:
        """Return the seconds that user code may work on a batch of a job's task in one step."""
        return self.tasks[job.task].options.batch_time_limit_s

    @property
    def longest_time_limit_s(self) -> float:
        """Return the longest of the tasks' `batch_time_limit_s`."""
        limits = [task.options.batch_time_limit_s for task in self.tasks.values()]
        return max(limits, default=TaskOptions().batch_time_limit_s)

    @property
    def running(self) -> Sequence[Job]:
        """The jobs of the running batch."""
        with self.lock:
            return list(self.scheduler.running.jobs) if self.scheduler.running else []

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Take in jobs that arrive in another way than by a claim, no job twice; return whether they are taken.

        An engine that drains takes none, and the caller gives them back then.
        """
        with self.lock:
            if not self.scheduler.draining:
                for group in self._accept(jobs):
                    self._queue(group)
            return not self.scheduler.draining

    def wait_for_capacity(self, timeout: float) -> None:
        """Wait for `timeout` seconds, or until a job has left since the last claim began."""
        self._freed.wait(timeout)

    # -- For the engine's threads ------------------------------------------------------------------------------------

    def wait_until_claimable(self) -> Mapping[str, Capacity] | None:
        """Return the free capacity as soon as there is any; None once the engine drains."""
        with self.lock:
            self.claimable.wait_for(lambda: self.scheduler.draining or not self.scheduler.full)
            self._freed.clear()
            return None if self.scheduler.draining else self.scheduler.capacity

    def take_in(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Take in claimed jobs; return, by task, those that the claim thread prepares because that runs no user code.

        The others are left to the preprocess threads, unless the engine drains and they are to be given back.
        """
        here: list[list[Job]] = []
        with self.lock:
            for group in self._accept(jobs):
                if self.models[group[0].task].runs_user_code_per_item and not self.scheduler.draining:
                    self._queue(group)
                else:
                    here.append(group)
        return here

    def wait_for_unprepared(self, name: str) -> list[Job] | None:
        """Return jobs of a task whose items are to be made, as soon as there are any; None once the engine drains."""
        groups = self.tasks[name].unprepared
        with self.lock:
            self.unprepared[name].wait_for(lambda: self.scheduler.draining or groups)
            return None if self.scheduler.draining else groups.popleft()

    def left(self, jobs: Sequence[Job], move: str) -> None:
        """Hold jobs no longer, because they were "given back" or "dropped"."""
        with self.lock:
            self.leave(jobs, move)

    def leave(self, jobs: Sequence[Job], move: str) -> None:
        """Hold jobs no longer, as `left` does. The lock is held."""
        self.scheduler.left(jobs, move)
        if self.scheduler.draining:
            self.drained.notify_all()
        elif not self.scheduler.full:
            self.claimable.notify_all()
        self._freed.set()

    def _accept(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Hold jobs; return them by task."""
        now = self.clock()
        groups: dict[str, list[Job]] = {}
        self.look_at(jobs)
        for job in jobs:
            job.claimed_at = now
            groups.setdefault(job.task, []).append(job)
        for group in groups.values():
            self.scheduler.claimed(group)
        return [*groups.values()]

    def _queue(self, jobs: list[Job]) -> None:
        """Queue jobs of one task: an equal part for each thread, and no part so large that the device waits for it."""
        task = self.tasks[jobs[0].task]
        size = min(-(-len(jobs) // task.options.preprocess_threads), task.options.max_batch_size)
        parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        task.unprepared += parts
        self.unprepared[jobs[0].task].notify(len(parts))
