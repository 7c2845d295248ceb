"""Jobs during whose run a worker died. They run last, and alone, because they may do it again. No I/O, no clock."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

from ...batchers import Batch, Job
from .job_table import TaskState

_deaths = attrgetter("deaths")


class Suspects:
    """The suspects of all tasks that wait for the device, apart from the jobs that the planner may choose."""

    def __init__(self, tasks: Mapping[str, TaskState]) -> None:
        """Start with none; `tasks` are by name."""
        self._tasks = tasks
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def keep(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Keep the suspects among jobs that wait from now on; return the others."""
        if not any(map(_deaths, jobs)):
            return jobs
        self._jobs += [job for job in jobs if job.deaths]
        return [job for job in jobs if not job.deaths]

    def take(self, now: float, held: int) -> Batch | None:
        """Take the suspect with the fewest deaths as a batch of one, if it may run now.

        It may if none of the `held` jobs, suspects included, is another job that would have to run again after the next
        death; or once it has waited `max_age_ms`, because its caller waits, too.
        """
        due = self._jobs if len(self._jobs) == held else [job for job in self._jobs if self._due_at(job) <= now]
        if not due:
            return None
        job = min(due, key=lambda job: (job.deaths, job.seq))
        self._jobs.remove(job)
        return Batch(job.task, [job], "suspect", sizes=self._tasks[job.task].options.preferred_batch_sizes)

    def take_all(self) -> list[Job]:
        """Take all suspects, because they are to be given back."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def due_at(self) -> float:
        """Return when the first suspect may run before other jobs; inf if there is none."""
        return min(map(self._due_at, self._jobs), default=float("inf"))

    def _due_at(self, job: Job) -> float:
        return job.claimed_at + self._tasks[job.task].options.max_age_ms / 1000
