"""The engine's decisions, without threads: whatever happens in whatever order, no job is lost and none is doubled."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from batchery.batchers import Batch, Job, JobState
from batchery.configs import TaskOptions
from batchery.worker.engine import Capacity
from batchery.worker.engine.job_table import MOVES, TaskState
from batchery.worker.engine.scheduler import Scheduler
from batchery.worker.engine.stats import Stats
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

NEVER = float("inf")
NOW = 100.0


#: Bytes of messages that each of two tasks may hold.
SHARE = 1000


def scheduler_of(**options: TaskOptions) -> Scheduler:
    return Scheduler({name: TaskState.create(task_options, SHARE) for name, task_options in options.items()})


def job(seq: int, task: str = "a", **fields: Any) -> Job:
    fields = {"enqueued_at": NOW, "claimed_at": NOW, **fields}
    return Job(str(seq), task, (), {}, None, seq=seq, **fields)


def prepare(scheduler: Scheduler, jobs: Iterable[Job]) -> None:
    """Let jobs come in and wait."""
    jobs = list(jobs)
    for task in {job.task for job in jobs}:
        group = [job for job in jobs if job.task == task]
        scheduler.claimed(group)
        scheduler.prepared(group, NOW)


def give_back(scheduler: Scheduler, jobs: list[Job]) -> None:
    scheduler.move("returned", jobs)
    scheduler.left(jobs, "given back")


def room(scheduler: Scheduler, task: str = "a") -> int:
    """Jobs of this task that may be claimed now."""
    return scheduler.capacity[task].jobs if task in scheduler.capacity else 0


def seqs(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [job.seq for job in batch.jobs]


def test_jobs_wait_in_the_order_of_their_claims_whichever_was_prepared_first() -> None:
    scheduler = scheduler_of(a=TaskOptions())
    jobs = [job(seq) for seq in range(4)]
    scheduler.claimed(jobs)
    scheduler.prepared([jobs[2]], NOW)
    scheduler.prepared([jobs[0], jobs[3]], NOW)
    scheduler.prepared([jobs[1]], NOW)
    assert seqs(scheduler.next_batch(NOW)) == [0, 1, 2, 3]


def test_the_device_goes_to_the_task_with_the_oldest_job() -> None:
    scheduler = scheduler_of(a=TaskOptions(), b=TaskOptions())
    prepare(scheduler, [job(2), job(3), job(1, "b"), job(4, "b")])
    assert seqs(scheduler.next_batch(NOW)) == [1, 4]
    assert seqs(scheduler.next_batch(NOW)) == [2, 3]


def test_a_task_that_still_waits_for_more_jobs_does_not_hold_up_one_that_is_due() -> None:
    scheduler = scheduler_of(a=TaskOptions(max_wait_ms=1000), b=TaskOptions())
    prepare(scheduler, [job(1), job(2, "b")])
    assert seqs(scheduler.next_batch(NOW)) == [2]
    assert scheduler.next_batch(NOW) is None
    assert scheduler.wake_at() == NOW + 1
    assert seqs(scheduler.next_batch(NOW + 1)) == [1]


def test_there_is_nothing_to_wake_for_where_nothing_waits_or_all_is_given_back() -> None:
    scheduler = scheduler_of(a=TaskOptions(max_wait_ms=1000))
    assert scheduler.wake_at() == NEVER
    prepare(scheduler, [job(1)])
    scheduler.draining = True
    assert scheduler.wake_at() == NEVER
    scheduler.drain()
    assert scheduler.wake_at() == NEVER


def test_there_is_room_for_the_look_ahead_and_a_batch_each_that_runs_is_put_together_and_settles() -> None:
    scheduler = scheduler_of(small=TaskOptions(max_batch_size=2), wide=TaskOptions(max_batch_size=10, look_ahead=2))
    assert room(scheduler, "small") == 8 * 2 + 3 * 2
    assert room(scheduler, "wide") == 2 * 10 + 3 * 10


def test_no_room_is_offered_until_it_is_worth_a_round_trip() -> None:
    scheduler = scheduler_of(a=TaskOptions(max_batch_size=16, look_ahead=1))
    jobs = [job(seq) for seq in range(room(scheduler))]
    prepare(scheduler, jobs)
    give_back(scheduler, jobs[: 64 // 8 - 1])
    assert scheduler.capacity == {}
    assert scheduler.full
    give_back(scheduler, jobs[7:8])
    assert room(scheduler) == 64 // 8
    assert not scheduler.full


def test_no_task_takes_room_from_another() -> None:
    scheduler = scheduler_of(a=TaskOptions(), b=TaskOptions())
    before = scheduler.capacity["b"]
    prepare(scheduler, [job(seq) for seq in range(room(scheduler))])
    assert scheduler.capacity == {"b": before}
    prepare(scheduler, [job(1000, "b")])
    assert scheduler.capacity == {"b": Capacity(before.jobs - 1, before.bytes)}


def test_messages_are_held_by_their_bytes_too_and_each_task_has_an_equal_share_of_them() -> None:
    scheduler = scheduler_of(a=TaskOptions(), b=TaskOptions())
    large = [job(1, size=SHARE // 2), job(2, size=SHARE // 2 - SHARE // 8 + 1)]
    scheduler.claimed(large)
    assert scheduler.capacity.keys() == {"b"}
    give_back(scheduler, large[:1])
    assert scheduler.capacity["a"].bytes == SHARE - large[1].size
    assert scheduler.capacity["b"].bytes == SHARE


def test_one_message_larger_than_a_tasks_share_keeps_only_its_own_task_waiting() -> None:
    scheduler = scheduler_of(a=TaskOptions(), b=TaskOptions())
    prepare(scheduler, [job(1, size=100 * SHARE)])
    assert scheduler.capacity.keys() == {"b"}
    batch = scheduler.next_batch(NOW)
    assert batch is not None
    give_back(scheduler, batch.jobs)
    assert scheduler.capacity["a"].bytes == SHARE


def test_without_batch_tasks_there_is_no_room_for_any_and_none_is_waited_for() -> None:
    scheduler = scheduler_of()
    assert scheduler.capacity == {}
    assert not scheduler.full


def test_a_job_waits_for_another_tasks_look_ahead_at_most() -> None:
    """Its turn comes when what was claimed before it has run, however much of the other task keeps coming."""
    scheduler = scheduler_of(a=TaskOptions(max_batch_size=4, look_ahead=2), b=TaskOptions())
    seqs = itertools.count()
    prepare(scheduler, [job(next(seqs)) for _ in range(room(scheduler))])
    late = job(next(seqs), "b")
    prepare(scheduler, [late])
    batches = 0
    while (batch := scheduler.next_batch(NOW)) is not None and batch.jobs != [late]:
        give_back(scheduler, batch.jobs)
        prepare(scheduler, [job(next(seqs)) for _ in range(room(scheduler))])
        batches += 1
    assert batches == 2 + 3


def test_a_task_with_batches_of_one_gets_room_for_each_job_that_leaves() -> None:
    scheduler = scheduler_of(a=TaskOptions(max_batch_size=1, look_ahead=1))
    jobs = [job(seq) for seq in range(room(scheduler))]
    prepare(scheduler, jobs)
    assert scheduler.capacity == {}
    give_back(scheduler, jobs[:1])
    assert room(scheduler) == 1


def test_draining_returns_the_jobs_that_wait_and_starts_and_claims_nothing_more() -> None:
    scheduler = scheduler_of(a=TaskOptions(max_batch_size=2), b=TaskOptions())
    prepare(scheduler, [job(1), job(2), job(3), job(5), job(4, "b")])
    running = scheduler.next_batch(NOW)
    assert running is not None
    scheduler.started(running, NOW)
    assert sorted(job.seq for job in scheduler.drain()) == [3, 4, 5]
    assert scheduler.next_batch(NOW) is None
    assert scheduler.capacity == {}
    assert scheduler.running is running
    assert scheduler.drain() == []


# -- Suspects ----------------------------------------------------------------------------------------------------------


def run_next(scheduler: Scheduler, now: float = NOW) -> list[int]:
    """Run the next batch until its results are stored; return its jobs."""
    batch = scheduler.next_batch(now)
    assert batch is not None
    scheduler.started(batch, now)
    scheduler.move("ran", batch.jobs)
    batch.finished_at = now
    scheduler.finished(batch, whole=True, more=False)
    scheduler.left(batch.jobs, "settled")
    return seqs(batch)


def test_suspects_run_last_and_alone_those_with_the_fewest_deaths_first() -> None:
    scheduler = scheduler_of(a=TaskOptions(), b=TaskOptions())
    prepare(scheduler, [job(0, deaths=2), job(1, deaths=1), job(2, "b", deaths=1)])
    prepare(scheduler, [job(3), job(4, "b"), job(5), job(6, deaths=1)])
    runs = [run_next(scheduler) for _ in range(6)]
    assert runs == [[3, 5], [4], [1], [2], [6], [0]]
    assert scheduler.held == 0


def test_a_suspect_is_a_batch_of_one_that_says_why() -> None:
    scheduler = scheduler_of(a=TaskOptions(preferred_batch_sizes=[4]))
    prepare(scheduler, [job(0, deaths=1), job(1, deaths=1)])
    batch = scheduler.next_batch(NOW)
    assert batch is not None
    assert (seqs(batch), batch.closed_by, batch.rows) == ([0], "suspect", 4)


@pytest.mark.parametrize("state", ["preparing", "waits for more", "settling"])
def test_a_suspect_waits_until_no_other_job_can_be_lost(state: str) -> None:
    scheduler = scheduler_of(a=TaskOptions(max_wait_ms=60_000))
    prepare(scheduler, [job(0, claimed_at=NOW, deaths=1)])
    other = job(1)
    scheduler.claimed([other])
    if state == "waits for more":
        scheduler.prepared([other], NOW)
    elif state == "settling":
        scheduler.move("failed", [other])
    assert scheduler.next_batch(NOW) is None
    if state == "settling":
        scheduler.left([other], "settled")
        assert seqs(scheduler.next_batch(NOW)) == [0]
    assert scheduler.next_batch(NOW + 9) is None


def test_a_suspect_that_has_waited_max_age_ms_since_its_claim_runs_before_other_jobs() -> None:
    scheduler = scheduler_of(a=TaskOptions(max_age_ms=2000, max_wait_ms=60_000), b=TaskOptions())
    prepare(scheduler, [job(0, enqueued_at=0, claimed_at=NOW, deaths=1), job(1, claimed_at=NOW)])
    assert scheduler.wake_at() == NOW + 2
    assert scheduler.next_batch(NOW + 1.9) is None
    prepare(scheduler, [job(2, "b", claimed_at=NOW)])
    assert seqs(scheduler.next_batch(NOW + 2)) == [0]
    assert seqs(scheduler.next_batch(NOW + 2)) == [2]


def test_no_suspect_is_put_together_ahead() -> None:
    scheduler = scheduler_of(a=TaskOptions(max_batch_size=1))
    prepare(scheduler, [job(0, deaths=1)])
    assert scheduler.next_batch(NOW + 3600, closed=True) is None
    assert seqs(scheduler.next_batch(NOW)) == [0]


def test_draining_returns_suspects_too() -> None:
    scheduler = scheduler_of(a=TaskOptions())
    prepare(scheduler, [job(0, deaths=1), job(1)])
    assert sorted(job.seq for job in scheduler.drain()) == [0, 1]
    assert scheduler.next_batch(NOW) is None
    assert scheduler.wake_at() == NEVER


# -- What was done -----------------------------------------------------------------------------------------------------


def test_batches_are_counted_with_their_sizes_padding_and_times() -> None:
    scheduler = scheduler_of(a=TaskOptions())
    assert (
        scheduler.tasks["a"].stats.mean_batch_size,
        scheduler.tasks["a"].stats.padding_share,
        scheduler.device_time.idle_share,
    ) == (0, 0, 0)
    for lengths in ([3, 5], [10, 10, 10, 10]):
        prepare(
            scheduler,
            (job(seq, length=length, enqueued_at=NOW - 3, claimed_at=NOW - 2) for seq, length in enumerate(lengths)),
        )
        batch = scheduler.next_batch(NOW)
        assert batch is not None
        scheduler.started(batch, NOW + 1)
        assert batch.started_at == NOW + 1
        scheduler.move("ran", batch.jobs)
        batch.finished_at = NOW + 3
        scheduler.finished(batch, whole=True, more=False)
        scheduler.settled(batch, NOW + 3.5)
    counts = scheduler.tasks["a"].stats
    assert counts == Stats(
        batches=2,
        jobs=6,
        tokens=48,
        padded_tokens=50,
        closed_by=Counter({"nothing left": 2}),
        queue_s=6 * 2,
        preprocess_s=6 * 2,
        run_s=4,
        settle_s=1,
    )
    assert counts.mean_batch_size == 3
    assert counts.padding_share == pytest.approx(0.04)
    assert counts.summary()["queue_ms"] == 2000


def test_time_counts_as_waited_only_where_work_was_there() -> None:
    scheduler = scheduler_of(a=TaskOptions(max_batch_size=1))

    def run_one(started_at: float, finished_at: float) -> None:
        batch = scheduler.next_batch(started_at)
        assert batch is not None
        scheduler.started(batch, started_at)
        batch.finished_at = finished_at
        scheduler.finished(batch, whole=True, more=False)

    prepare(scheduler, [job(0), job(1)])
    run_one(NOW, NOW + 9)
    run_one(NOW + 10, NOW + 19)
    prepare(scheduler, [job(2)])
    run_one(NOW + 100, NOW + 101)
    assert (scheduler.device_time.idled_s, scheduler.device_time.ran_s) == (1, 19)
    assert scheduler.device_time.idle_share == 1 / 20


def test_running_out_of_memory_lowers_the_token_ceiling_at_once() -> None:
    scheduler = scheduler_of(a=TaskOptions())
    ceiling = scheduler.tasks["a"].ceiling
    scheduler.out_of_memory([job(n, length=10) for n in range(8)])
    assert ceiling.limit is not None
    assert ceiling.limit < 80
    assert scheduler.tasks["a"].stats.out_of_memory == 1


@pytest.mark.parametrize(("move", "sources", "target"), [(move, *states) for move, states in MOVES.items()])
def test_a_move_that_the_table_does_not_have_is_refused(move: str, sources: list[JobState], target: JobState) -> None:
    scheduler = scheduler_of(a=TaskOptions())
    for state in JobState:
        one = job(1)
        one.state = state
        if state in sources:
            scheduler.move(move, [one])
            assert one.state is target
        else:
            with pytest.raises(RuntimeError, match=f"Job 1 is {state.name} and cannot be {move}"):
                scheduler.move(move, [one])


class AnyOrder(RuleBasedStateMachine):
    """Everything that an engine tells its scheduler, in any order that an engine could."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.scheduler = scheduler_of(
            a=TaskOptions(max_batch_size=3, look_ahead=2, max_wait_ms=500),
            b=TaskOptions(max_batch_size=4, look_ahead=1, max_batch_tokens=20, max_age_ms=2000),
        )
        self.most = {task: room(self.scheduler, task) for task in "ab"}
        self.made = 0
        self.claimed: list[Job] = []
        self.unprepared: list[Job] = []
        self.waiting: list[Job] = []
        self.running: Batch | None = None
        self.settling: list[Job] = []
        self.left: list[Job] = []

    def leave(self, jobs: list[Job], move: str) -> None:
        if move == "given back" and any(job.state is not JobState.RETURNING for job in jobs):
            self.scheduler.move("returned", jobs)
        self.scheduler.left(jobs, move)
        self.left += jobs

    def prepared(self, jobs: list[Job]) -> None:
        for task in "ab":
            if group := sorted((job for job in jobs if job.task == task), key=lambda job: job.seq):
                self.scheduler.prepared(group, self.now)
        self.waiting += jobs

    @rule(data=st.data())
    def claim(self, data: Any) -> None:
        task = data.draw(st.sampled_from("ab"))
        for _ in range(data.draw(st.integers(0, room(self.scheduler, task)))):
            fields = {
                "size": data.draw(st.integers(0, 100)),
                "length": data.draw(st.integers(0, 30)),
                "priority": data.draw(st.sampled_from([0, 0, 3])),
                "enqueued_at": self.now - data.draw(st.sampled_from([0, 0.2, 3])),
                "claimed_at": self.now,
                "deaths": data.draw(st.sampled_from([0, 0, 0, 1, 2])),
            }
            self.unprepared.append(job(self.made, task, **fields))
            self.scheduler.claimed(self.unprepared[-1:])
            self.claimed += self.unprepared[-1:]
            self.made += 1

    @rule(data=st.data())
    def prepare(self, data: Any) -> None:
        """Some jobs are through preprocessing, in any order; some of them failed."""
        jobs = data.draw(st.permutations(self.unprepared))[: data.draw(st.integers(0, 5))]
        self.unprepared = [job for job in self.unprepared if job not in jobs]
        failed = jobs[: data.draw(st.integers(0, 1))]
        self.scheduler.move("failed", failed)
        self.settling += failed
        sound = jobs[len(failed) :]
        if self.scheduler.draining:
            self.leave(sound, "given back")
        else:
            self.prepared(sound)

    @precondition(lambda self: self.running is None)
    @rule(withdrawn=st.integers(0, 1))
    def run(self, withdrawn: int) -> None:
        """The device is free: it takes a batch, of which a job may not be wanted any more."""
        batch = self.scheduler.next_batch(self.now)
        if batch is None:
            self.check_that_waiting_is_right()
            return
        assert batch.jobs
        assert len(set(map(id, batch.jobs))) == len(batch.jobs)
        assert all(job in self.waiting and job.task == batch.task for job in batch.jobs)
        self.check_suspects(batch)
        self.waiting = [job for job in self.waiting if job not in batch.jobs]
        self.leave(batch.jobs[:withdrawn], "dropped")
        batch.jobs = batch.jobs[withdrawn:]
        if batch.jobs:
            self.scheduler.started(batch, self.now)
            self.running = batch

    def check_suspects(self, batch: Batch) -> None:
        suspects = [job for job in batch.jobs if job.deaths]
        assert (batch.closed_by == "suspect") == bool(suspects)
        for suspect in suspects:
            assert batch.jobs == [suspect]
            others = [job for job in [*self.waiting, *self.unprepared] if not job.deaths]
            max_age_s = self.scheduler.tasks[suspect.task].options.max_age_ms / 1000
            assert not (others or self.settling) or self.now >= suspect.claimed_at + max_age_s

    def check_that_waiting_is_right(self) -> None:
        if self.scheduler.draining or not self.waiting:
            assert self.scheduler.wake_at() == NEVER
        else:
            assert self.scheduler.wake_at() > self.now
            self.now = self.scheduler.wake_at()
            batch = self.scheduler.next_batch(self.now)
            assert batch is not None
            self.scheduler.started(batch, self.now)
            self.waiting = [job for job in self.waiting if job not in batch.jobs]
            self.running = batch

    @precondition(lambda self: self.running is not None)
    @rule()
    def finish(self) -> None:
        assert self.running is not None
        self.scheduler.move("ran", self.running.jobs)
        self.running.finished_at = self.now
        self.scheduler.finished(self.running, whole=True, more=False)
        self.settling += self.running.jobs
        self.running = None

    @rule(data=st.data())
    def settle(self, data: Any) -> None:
        count = data.draw(st.integers(0, len(self.settling)))
        self.leave(self.settling[:count], "settled")
        del self.settling[:count]

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.made > 12)
    @rule()
    def drain(self) -> None:
        jobs = self.scheduler.drain()
        assert sorted(job.seq for job in jobs) == sorted(job.seq for job in self.waiting)
        self.waiting = []
        self.leave(jobs, "given back")

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        running = self.running.jobs if self.running else []
        places = [*self.unprepared, *self.waiting, *running, *self.settling, *self.left]
        assert sorted(job.seq for job in places) == list(range(self.made))
        assert self.scheduler.running is self.running
        assert self.scheduler.count(JobState.PREPARING) == len(self.unprepared)
        assert self.scheduler.count(JobState.WAITING) == len(self.waiting)
        assert self.scheduler.count(JobState.SETTLING) == len(self.settling)

    @invariant()
    def what_is_held_stays_within_its_bound(self) -> None:
        assert self.scheduler.held == self.made - len(self.left)
        gone = set(map(id, self.left))
        for task in "ab":
            held = [job for job in self.claimed if job.task == task and id(job) not in gone]
            size = sum(job.size for job in held)
            assert len(held) <= self.most[task]
            assert self.scheduler.capacity.get(task) in (None, (self.most[task] - len(held), SHARE - size))
            quiet = self.scheduler.draining or self.scheduler.suspects.need_quiet
            assert task in self.scheduler.capacity or held or quiet

    def teardown(self) -> None:
        """Whatever happened before, the engine can go on until nothing is held."""
        jobs, self.unprepared = self.unprepared, []
        if self.scheduler.draining:
            self.leave(jobs, "given back")
        else:
            self.prepared(jobs)
        while self.waiting or self.running:
            if self.running is None:
                self.run(0)
            self.finish()
        self.leave(self.settling, "settled")
        self.settling = []
        self.every_job_is_in_one_place()
        assert self.scheduler.held == 0


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
