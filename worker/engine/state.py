"""The engine's state: what all of its threads share, under one lock."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ...batchers import Batch, Job, Outcome, Planner
from ...configs import WorkerOptions
from .model import Model
from .open_plan import OpenPlan
from .ports import Capacity
from .scheduler import Scheduler, TaskState


class EngineState:
    """Models, options, and the scheduler with its lock; an `Intake` for the engine's source and sink.

    It exists before the engine, its source and its sink. The lock is never held during I/O or user code. Each thing
    that a thread may wait for has a condition of its own, because waking the wrong thread costs the GIL twice.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        options: WorkerOptions,
        *,
        planners: Mapping[str, Planner] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold nothing yet. `models` and `planners` are by task name; a task without a planner gets the default one."""
        self.models = models
        self.options = options
        self.clock = clock
        max_bytes = options.held_max_bytes // max(1, len(models))
        self.tasks = {
            name: TaskState.create(model.options, max_bytes, (planners or {}).get(name))
            for name, model in models.items()
        }
        self.scheduler = Scheduler(self.tasks)
        self.plan = OpenPlan(self.scheduler)
        self.lock = threading.Lock()
        self.claimable = threading.Condition(self.lock)
        self.unprepared = threading.Condition(self.lock)
        #: A batch may run now.
        self.runnable = threading.Condition(self.lock)
        #: A batch may be put together ahead now.
        self.collatable = threading.Condition(self.lock)
        #: Something left the engine, or will not come back to it, while it drains.
        self.drained = threading.Condition(self.lock)
        #: Set when a job has left; cleared before each claim.
        self._freed = threading.Event()
        #: Whether the device thread and the collate thread are to end.
        self.stopping = False
        #: Whether a thread has died that had jobs in hand, which therefore will never leave.
        self.stuck = False

    # -- Intake ------------------------------------------------------------------------------------------------------

    @property
    def hung(self) -> bool:
        """Whether the running batch has exceeded its time limit."""
        with self.lock:
            batch = self.scheduler.running
            return batch is not None and (
                self.clock() - batch.started_at > self.tasks[batch.task].options.batch_time_limit_s
            )

    @property
    def running(self) -> Sequence[Job]:
        """The jobs of the running batch."""
        with self.lock:
            return list(self.scheduler.running.jobs) if self.scheduler.running else []

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Take in jobs that arrive in another way than by a claim: see `Intake`."""
        with self.lock:
            if self.scheduler.draining:
                return False
            self._accept(jobs)
            for group in self._by_task(jobs):
                self._queue(group)
        return True

    def wait_for_capacity(self, timeout: float) -> None:
        """Wait for `timeout` seconds, or until a job has left since the last claim began."""
        self._freed.wait(timeout)

    # -- Claiming and preparing --------------------------------------------------------------------------------------

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
            self._accept(jobs)
            for group in self._by_task(jobs):
                if self.models[group[0].task].runs_user_code_per_item and not self.scheduler.draining:
                    self._queue(group)
                else:
                    here.append(group)
        return here

    def wait_for_unprepared(self) -> list[Job] | None:
        """Return jobs of one task whose items are to be made, as soon as there are any; None once the engine drains."""
        with self.lock:
            while not self.scheduler.draining:
                if jobs := self.scheduler.next_unprepared():
                    return jobs
                self.unprepared.wait()
        return None

    def _accept(self, jobs: Sequence[Job]) -> None:
        now = self.clock()
        for job in jobs:
            job.claimed_at = now
        self.scheduler.claimed(jobs)

    def _by_task(self, jobs: Sequence[Job]) -> list[list[Job]]:
        groups: dict[str, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.task, []).append(job)
        return [*groups.values()]

    def _queue(self, jobs: list[Job]) -> None:
        """Queue jobs of one task: an equal part for each thread, and no part so large that the device waits for it."""
        task = self.tasks[jobs[0].task]
        size = min(-(-len(jobs) // self.options.preprocess_threads), task.options.max_batch_size)
        parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
        task.unprepared += parts
        self.unprepared.notify(len(parts))

    # -- Waking ------------------------------------------------------------------------------------------------------

    def work_came(self, jobs: Sequence[Job] = ()) -> None:
        """Wake the device thread, now that `jobs` wait. The lock is held."""
        self.plan.work_came(jobs)
        self.runnable.notify()
        self.wake_collate_thread()

    def wake_collate_thread(self) -> None:
        """Wake the collate thread if it has something to wait for. The lock is held."""
        if self.plan.collates_ahead:
            self.collatable.notify()

    # -- Leaving -----------------------------------------------------------------------------------------------------

    def settled(self, outcomes: Sequence[Outcome], now: float) -> list[Batch]:
        """Count outcomes that are settled, and hold their jobs no longer; return the batches settled as a whole."""
        scheduler, done = self.scheduler, []
        with self.lock:
            device_waits = scheduler.results_wait
            for outcome in outcomes:
                if outcome.error is not None:
                    self.tasks[outcome.job.task].stats.failed += 1
                if (batch := outcome.batch) is not None:
                    batch.settled += 1
                    if batch.settled == len(batch.jobs):
                        scheduler.settled(batch, now)
                        done.append(batch)
            self._left([outcome.job for outcome in outcomes], "settled")
            if device_waits:
                self.work_came()
        self._freed.set()
        return done

    def left(self, jobs: Sequence[Job], move: str) -> None:
        """Hold jobs no longer, because they were "given back" or "dropped"."""
        with self.lock:
            self._left(jobs, move)
        self._freed.set()

    def _left(self, jobs: Sequence[Job], move: str) -> None:
        self.scheduler.left(jobs, move)
        if self.scheduler.draining:
            self.drained.notify_all()
        elif not self.scheduler.full:
            self.claimable.notify_all()

    def stop(self) -> None:
        """End the device thread and the collate thread once nothing runs any more. The lock is held."""
        self.stopping = True
        self.runnable.notify()
        self.collatable.notify()

    def broken(self, *, stuck: bool) -> None:
        """Drain, because a thread died; it is `stuck` if jobs that the thread had in hand will never leave."""
        with self.lock:
            self.scheduler.draining = True
            self.stuck = self.stuck or stuck
            for condition in (self.claimable, self.unprepared, self.drained):
                condition.notify_all()
