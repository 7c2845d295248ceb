"""What runs next: decisions without I/O, threads or clock, because the time is an argument."""

from collections.abc import Mapping, Sequence
from itertools import count
from operator import attrgetter

from ...batchers import Batch, Job, JobState
from ...batchers.planning.token_ceiling import batch_tokens
from .. import tuning
from .job_table import JobTable, TaskState
from .ports import Capacity
from .stats import DeviceTime
from .suspects import Suspects

NEVER = float("inf")

_seq = attrgetter("seq")


class Scheduler(JobTable):
    """Lets jobs wait, chooses batches among them, and learns from those that ran. Not thread-safe, as its table."""

    def __init__(self, tasks: Mapping[str, TaskState]) -> None:
        """Start with nothing held; `tasks` are by name."""
        super().__init__(tasks)
        self.running: Batch | None = None
        self.suspects = Suspects(tasks)
        #: Batches that have run and are not settled.
        self._unsettled_batches = 0
        self.device_time = DeviceTime()
        self._numbers = count(1)

    @property
    def capacity(self) -> dict[str, Capacity]:
        """What may be claimed now, by task: nothing while suspects wait for all other jobs to leave."""
        return {} if self.suspects.need_quiet else super().capacity

    # -- Preparing ---------------------------------------------------------------------------------------------------

    def prepared(self, jobs: Sequence[Job], now: float) -> None:
        """Let prepared jobs of one task wait for the planner, in claim order, even if a later group was ready earlier.

        `jobs` are in claim order, too.
        """
        self.move("prepared", jobs)
        for job in jobs:
            job.prepared_at = now
        if not (jobs := self.suspects.keep(jobs)):
            return
        waiting = self.tasks[jobs[0].task].waiting
        is_late = bool(waiting) and waiting[-1].seq > jobs[0].seq
        waiting += jobs
        if is_late:
            waiting.sort(key=_seq)

    # -- Running -----------------------------------------------------------------------------------------------------

    @property
    def work_waits(self) -> bool:
        """Whether a job waits for the device."""
        return self.count(JobState.WAITING) > 0

    @property
    def results_wait(self) -> bool:
        """Whether so many results wait to be stored that no other batch should start before some are."""
        many = self.count(JobState.SETTLING) >= tuning.MAX_UNSETTLED_JOBS
        return many and self._unsettled_batches >= tuning.MAX_UNSETTLED_BATCHES

    def next_batch(self, now: float, *, closed: bool = False) -> Batch | None:
        """Take the batch that runs now: that of the task with the oldest job among those that are due.

        Where it must be `closed`, a batch that other jobs may still join is left alone, and so is a suspect.
        """
        if self.draining:
            return None
        if self.suspects and not closed and (batch := self.suspects.take(now, self.held)) is not None:
            self.move("chosen", batch.jobs)
            return batch
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
        due_at = [task.planner.due_at(task.waiting) for task in self.tasks.values() if task.waiting]
        return min([self.suspects.due_at(), *due_at])

    def reopen(self, batch: Batch) -> None:
        """Let the jobs of a batch that does not run yet wait again."""
        self.move("reopened", batch.jobs)
        task = self.tasks[batch.task]
        task.waiting = sorted([*batch.jobs, *task.waiting], key=_seq)

    def postpone(self, batch: Batch, now: float) -> None:
        """Let a suspect that may not run yet wait for a moment."""
        self.move("reopened", batch.jobs)
        self.suspects.postpone(batch.jobs, now)

    def started(self, batch: Batch, now: float) -> None:
        """Note that a batch runs."""
        self.move("started", batch.jobs)
        batch.started_at = now
        batch.quick = self.tasks[batch.task].last_run_s < tuning.QUICK_RUN_S
        batch.number = next(self._numbers)
        self.running = batch
        self.device_time.started(now)

    def finished(self, batch: Batch, *, whole: bool, more: bool) -> None:
        """Note that the running batch is through: `whole` if in one piece, `more` if the next one is chosen."""
        self.running = None
        self._unsettled_batches += 1
        task = self.tasks[batch.task]
        task.last_run_s = batch.run_s
        if whole and batch.closed_by != "suspect":  # whose run was its preparation, too
            task.cost.observe(batch.rows, batch.longest, 1000 * batch.run_s)
            ceiling, budget = task.ceiling, task.options.max_batch_tokens
            lower = ceiling.limit is not None and (budget is None or ceiling.limit < budget)
            ceiling.succeeded(batch_tokens(batch.jobs), held_down=lower and batch.closed_by == "budget")
        more = more or self.work_waits or self.count(JobState.PREPARING) > 0
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

    def drain(self) -> list[Job]:
        """Start no more batches; return the jobs that are to be given back because nobody has begun with them."""
        self.draining = True
        jobs = self.suspects.take_all()
        for task in self.tasks.values():
            jobs += task.waiting
            jobs += (job for group in task.unprepared for job in group)
            task.waiting.clear()
            task.unprepared.clear()
        self.move("returned", jobs)
        return jobs

    def _take(self, task: TaskState, jobs: Sequence[Job]) -> None:
        self.move("chosen", jobs)
        if task.waiting[: len(jobs)] == jobs:
            del task.waiting[: len(jobs)]
        else:
            task.waiting[:] = [job for job in task.waiting if job.state is JobState.WAITING]
