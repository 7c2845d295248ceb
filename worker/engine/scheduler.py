"""The engine's decisions, as a state machine without I/O, threads or clock: the time is an argument.

A job is, in this order, preparing, waiting, running, settling; from each of these it may leave. What is bounded is
everything held together, so that no stage can pile up behind a slow one; and it is bounded for each task by itself, so
that no task's backlog keeps another one's jobs out.
"""

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from ...batchers import Batch, CostModel, Job, Planner, TokenCeiling
from ...batchers.planning.token_ceiling import batch_tokens
from ...configs import TaskOptions
from .front import Room
from .stats import Stats

_NEVER = float("inf")


#: Seconds that a batch must be expected to run for another thread to put the next one together meanwhile.
_WORTH_COLLATING_AHEAD_S = 0.005

#: Batches, and jobs, whose results may wait to be stored: with more of both, the device waits. So a store that is away
#: costs little memory.
_MOST_UNSETTLED, _MOST_UNSETTLED_JOBS = 2, 64


@dataclass(slots=True)
class _Quota:
    """What is held of one task, and how much may be."""

    most_jobs: int
    most_bytes: int
    jobs: int = 0
    bytes: int = 0

    @property
    def room(self) -> Room | None:
        """What may be claimed now; None until an eighth is free, and a claim so worth its round trip."""
        room = Room(self.most_jobs - self.jobs, self.most_bytes - self.bytes)
        enough = room.jobs >= max(1, self.most_jobs // 8) and room.bytes >= max(1, self.most_bytes // 8)
        return room if enough else None


class Scheduler:
    """What is held, and what runs next. Not thread-safe: its engine guards it with one lock."""

    def __init__(
        self,
        options: Mapping[str, TaskOptions],
        planners: Mapping[str, Planner],
        costs: Mapping[str, CostModel] | None = None,
        ceilings: Mapping[str, TokenCeiling] | None = None,
        *,
        held_max_bytes: int,
    ) -> None:
        """Start with nothing held; the mappings are by task name. Costs and ceilings learn from what runs.

        Each task may hold an equal part of `held_max_bytes`.
        """
        self._planners = planners
        self._costs = costs or {}
        self._ceilings = ceilings or {}
        self._waiting: dict[str, list[Job]] = {name: [] for name in planners}
        share = held_max_bytes // max(1, len(options))
        self._held = {name: _Quota(0, share) for name in options}
        self.bound(options)
        #: Jobs that came in and neither wait nor have left.
        self.preparing = 0
        self.running: Batch | None = None
        #: Batches that were started and are not settled, and their jobs.
        self._unsettled = self._unsettled_jobs = 0
        #: When the batch after the running one should be put together; never, if that can wait until it is through.
        self.collate_at = _NEVER
        self._collate_s = 0.0
        #: The batch for which `collate_at` was found out.
        self._expected: Batch | None = None
        #: Since when the device waits although work is there.
        self._waits_since: float | None = None
        self.draining = False
        self.counts = {name: Stats() for name in planners}
        #: Seconds that batches ran, and seconds that the device waited between two of them although work was there.
        self.ran_s = self.waited_s = 0.0
        self._numbers = count(1)

    def bound(self, options: Mapping[str, TaskOptions]) -> None:
        """Hold no more of each task than these options ask for, by task name."""
        for name, option in options.items():
            # What waits, and a batch each that runs, is put together and is being settled.
            self._held[name].most_jobs = option.max_waiting + 3 * option.max_batch_size

    @property
    def held(self) -> int:
        """Jobs that were claimed and have not left."""
        return sum(held.jobs for held in self._held.values())

    @property
    def rooms(self) -> dict[str, Room]:
        """What may be claimed now, by task; a task that has no room is missing."""
        if self.draining:
            return {}
        return {name: room for name, held in self._held.items() if (room := held.room)}

    @property
    def nothing_waits(self) -> bool:
        """Whether no job waits for the device."""
        return not any(self._waiting.values())

    @property
    def results_wait(self) -> bool:
        """Whether the results of so many batches wait to be stored that no other should start before some are."""
        running = self.running
        batches = self._unsettled - (running is not None)
        jobs = self._unsettled_jobs - (len(running.jobs) if running else 0)
        return batches >= _MOST_UNSETTLED and jobs >= _MOST_UNSETTLED_JOBS

    @property
    def full(self) -> bool:
        """Whether there are tasks, and none of them has room."""
        return bool(self._held) and not self.rooms

    def claimed(self, jobs: Sequence[Job]) -> None:
        """Take note of jobs that came in; they are preparing until `prepared` or `unprepared` says otherwise."""
        for job in jobs:
            held = self._held[job.task]
            held.jobs += 1
            held.bytes += job.size
        self.preparing += len(jobs)

    def prepared(self, jobs: Iterable[Job], now: float) -> None:
        """Let prepared jobs wait for the planner, in claim order, whichever was prepared first."""
        for job in jobs:
            job.prepared_at = now
            self.preparing -= 1
            waiting = self._waiting[job.task]
            if not waiting or waiting[-1].seq < job.seq:
                waiting.append(job)
            else:
                insort(waiting, job, key=_seq)
        if self.running is not None and self._expected is not self.running:
            self._expect(self.running)

    def unprepared(self, count: int) -> None:
        """Take note of jobs that failed in preparation, or were not prepared any more; they are still held."""
        self.preparing -= count

    def next_batch(self, now: float, *, ahead: bool = False) -> Batch | None:
        """Take the batch that runs now: that of the task with the oldest job among those that are due.

        For a batch that is put together `ahead` of its run, leave alone what others may still join.
        """
        if self.draining:
            return None
        for name in sorted(
            filter(self._waiting.__getitem__, self._waiting), key=lambda name: self._waiting[name][0].seq
        ):
            batch = self._planners[name].choose(self._waiting[name], now)
            if batch is not None:
                if ahead and batch.closed_by == "nothing left":
                    return None
                self._remove(batch)
                return batch
        return None

    def reopen(self, batch: Batch) -> None:
        """Let the jobs of a batch that does not run yet wait again."""
        self._waiting[batch.task] = sorted([*batch.jobs, *self._waiting[batch.task]], key=_seq)

    def wake_at(self) -> float:
        """Return when `next_batch` is worth asking again though nothing came in."""
        if self.draining:
            return _NEVER
        return min((self._planners[name].due_at(jobs) for name, jobs in self._waiting.items() if jobs), default=_NEVER)

    @property
    def collates_ahead(self) -> bool:
        """Whether the next batch is to be put together while one runs."""
        return self.collate_at != _NEVER

    def started(self, batch: Batch, now: float) -> None:
        """Take note that a batch runs."""
        batch.started_at = now
        batch.number = next(self._numbers)
        self.running = batch
        self._unsettled += 1
        self._unsettled_jobs += len(batch.jobs)
        if self._waits_since is not None:
            self.waited_s += now - self._waits_since
            self._waits_since = None
        if not self.nothing_waits:
            self._expect(batch)

    def _expect(self, batch: Batch) -> None:
        """Find out when the batch after the running one should be put together: once, and where there may be one."""
        self._expected = batch
        cost = self._costs.get(batch.task)
        expected_s = float(cost(batch.rows, batch.longest)) / 1000 if cost else 0.0
        if expected_s >= _WORTH_COLLATING_AHEAD_S:
            self.collate_at = batch.started_at + max(0.0, expected_s - 2 * self._collate_s)

    def collated(self, seconds: float) -> None:
        """Take note of how long it took to put a batch together."""
        self._collate_s += (seconds - self._collate_s) / 4

    def finished(self, batch: Batch, *, whole: bool, more: bool) -> None:
        """Take note that the running batch is through: `whole` if in one piece, `more` if the next one is chosen."""
        self.running = None
        self.collate_at = _NEVER
        self.ran_s += batch.run_s
        if whole and batch.task in self._costs:
            self._costs[batch.task].observe(batch.rows, batch.longest, 1000 * batch.run_s)
        if whole and batch.task in self._ceilings:
            self._ceilings[batch.task].succeeded(batch_tokens(batch.jobs))
        if more or self.preparing or not self.nothing_waits:
            self._waits_since = batch.finished_at

    def out_of_memory(self, jobs: Sequence[Job]) -> None:
        """Take note that these jobs of one batch did not fit into memory together."""
        self.counts[jobs[0].task].out_of_memory += 1
        if ceiling := self._ceilings.get(jobs[0].task):
            ceiling.failed(batch_tokens(jobs), len(jobs))

    def settled(self, batch: Batch, now: float) -> None:
        """Take note that all of a batch's jobs are settled."""
        self._unsettled -= 1
        self._unsettled_jobs -= len(batch.jobs)
        self.counts[batch.task].add(batch, now)

    @property
    def waited_share(self) -> float:
        """Share of the device's time that it waited although work was there, from 0 to 1."""
        return self.waited_s / (self.ran_s + self.waited_s) if self.waited_s else 0.0

    def left(self, jobs: Iterable[Job]) -> None:
        """Take note of jobs that are no longer held: settled, given back, or withdrawn."""
        for job in jobs:
            held = self._held[job.task]
            held.jobs -= 1
            held.bytes -= job.size

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


def _seq(job: Job) -> int:
    return job.seq
