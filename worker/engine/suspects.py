"""Jobs that may end a worker: which of them run, when, and for how long. No I/O, no clock.

A job on which user code worked when a worker died or hung is a suspect. It goes its whole way alone, from `preprocess`
to `postprocess`, so that the next death tells whether it is the cause. Suspects run one by one, and not in halves,
because a run costs milliseconds, but a death costs a lease and the start of a worker: a batch with one such job among n
costs three deaths, whatever n is.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter

from ...batchers import Batch, Job, WorkerDied
from .. import tuning
from .job_table import TaskState

_NEVER = float("inf")

_deaths = attrgetter("deaths")


class Suspects:
    """The suspects of all tasks that wait for the device, apart from the jobs that the planner may choose."""

    def __init__(self, tasks: Mapping[str, TaskState]) -> None:
        """Start with none; `tasks` are by name."""
        self._tasks = tasks
        self._jobs: list[Job] = []
        #: When to ask again, because another worker runs a suspect; inf if none does as far as we know. It keeps the
        #: suspects of several deaths waiting. After one death a job is most likely an innocent neighbour.
        self._ask_at = _NEVER

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def need_quiet(self) -> bool:
        """Whether suspects wait for all other jobs to leave, so that no more should be claimed meanwhile."""
        return bool(self._waiting)

    @property
    def _waiting(self) -> list[Job]:
        """The suspects that do not wait for another worker."""
        return self._jobs if self._ask_at == _NEVER else [job for job in self._jobs if not needs_leave(job)]

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
        if self._ask_at <= now:
            self._ask_at = _NEVER
        waiting = self._waiting
        due = waiting if len(self._jobs) == held else [job for job in waiting if self._due_at(job) <= now]
        if not due:
            return None
        job = min(due, key=lambda job: (job.deaths, job.seq))
        self._jobs.remove(job)
        return Batch(job.task, [job], "suspect", sizes=self._tasks[job.task].options.preferred_batch_sizes)

    def postpone(self, jobs: Sequence[Job], now: float) -> None:
        """Keep suspects that were taken and may not run, because another worker runs one: two must not die at once."""
        self._jobs += jobs
        self._ask_at = now + tuning.SUSPECT_PAUSE_S

    def take_all(self) -> list[Job]:
        """Take all suspects, because they are to be given back."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def due_at(self) -> float:
        """Return when the first suspect may run before other jobs, or may ask again; inf if there is none."""
        return min([self._ask_at, *map(self._due_at, self._waiting)])

    def _due_at(self, job: Job) -> float:
        return job.claimed_at + self._tasks[job.task].options.max_age_ms / 1000


def needs_leave(job: Job) -> bool:
    """Whether a suspect may run only while no other worker runs one: two workers must not die at once."""
    return job.deaths > 1


def why_given_up(job: Job, max_deliveries: int) -> WorkerDied | None:
    """Return the error with which a job fails because it does not run any more; None if it may run.

    Only deaths while it was alone are evidence against it. Any other job that was there may be the cause of the rest.
    A job that only waited whenever it was lost is innocent, however often that was.
    """
    if job.deaths >= tuning.MAX_DEATHS and job.lone_deaths >= tuning.MAX_LONE_DEATHS:
        return WorkerDied(
            f"A worker died each of the {job.deaths} times that one ran this job, and {job.lone_deaths} times the job "
            "ran alone. So the job does not run again."
        )
    if job.deaths and job.lost >= max_deliveries:
        return WorkerDied(
            f"This job was delivered {job.lost} times, and each time its worker died, hung or lost its lease, "
            f"{job.deaths} times while it ran the job. max_deliveries is {max_deliveries}, so it does not run again."
        )
    return None
