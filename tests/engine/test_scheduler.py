"""The engine's decisions, without threads: whatever happens in whatever order, no job is lost and none is doubled."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from batchery.batchers import Batch, CostModel, GreedyPlanner, Job, TokenCeiling
from batchery.configs import TaskOptions
from batchery.worker.engine import Room
from batchery.worker.engine.scheduler import Scheduler
from batchery.worker.engine.stats import Stats
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

NEVER = float("inf")
NOW = 100.0


#: Bytes of messages that each of two tasks may hold.
SHARE = 1000


def core_of(**options: TaskOptions) -> Scheduler:
    planners = {name: GreedyPlanner(task_options) for name, task_options in options.items()}
    return Scheduler(options, planners, held_max_bytes=SHARE * len(options))


def job(seq: int, task: str = "a", **fields: Any) -> Job:
    return Job(str(seq), task, (), {}, None, fields.pop("enqueued_at", NOW), seq, **fields)


def prepare(core: Scheduler, jobs: Iterable[Job]) -> None:
    """Let jobs come in and wait."""
    jobs = list(jobs)
    core.claimed(jobs)
    core.prepared(jobs, NOW)


def room(core: Scheduler, task: str = "a") -> int:
    """Jobs of this task that may be claimed now."""
    return core.rooms[task].jobs if task in core.rooms else 0


def seqs(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [job.seq for job in batch.jobs]


def test_jobs_wait_in_the_order_of_their_claims_whichever_was_prepared_first() -> None:
    core = core_of(a=TaskOptions())
    jobs = [job(seq) for seq in range(4)]
    core.claimed(jobs)
    core.prepared([jobs[2]], NOW)
    core.prepared([jobs[0], jobs[3]], NOW)
    core.prepared([jobs[1]], NOW)
    assert seqs(core.next_batch(NOW)) == [0, 1, 2, 3]


def test_the_device_goes_to_the_task_with_the_oldest_job() -> None:
    core = core_of(a=TaskOptions(), b=TaskOptions())
    prepare(core, [job(2), job(3), job(1, "b"), job(4, "b")])
    assert seqs(core.next_batch(NOW)) == [1, 4]
    assert seqs(core.next_batch(NOW)) == [2, 3]


def test_a_task_that_still_waits_for_more_jobs_does_not_hold_up_one_that_is_due() -> None:
    core = core_of(a=TaskOptions(max_wait_ms=1000), b=TaskOptions())
    prepare(core, [job(1), job(2, "b")])
    assert seqs(core.next_batch(NOW)) == [2]
    assert core.next_batch(NOW) is None
    assert core.wake_at() == NOW + 1
    assert seqs(core.next_batch(NOW + 1)) == [1]


def test_there_is_nothing_to_wake_for_where_nothing_waits_or_all_is_given_back() -> None:
    core = core_of(a=TaskOptions(max_wait_ms=1000))
    assert core.wake_at() == NEVER
    prepare(core, [job(1)])
    core.draining = True
    assert core.wake_at() == NEVER
    core.drain()
    assert core.wake_at() == NEVER


def test_there_is_room_for_the_look_ahead_and_a_batch_each_that_runs_is_put_together_and_settles() -> None:
    core = core_of(small=TaskOptions(max_batch_size=2), wide=TaskOptions(max_batch_size=10, look_ahead=2))
    assert room(core, "small") == 8 * 2 + 3 * 2
    assert room(core, "wide") == 2 * 10 + 3 * 10


def test_no_room_is_offered_until_it_is_worth_a_round_trip() -> None:
    core = core_of(a=TaskOptions(max_batch_size=16, look_ahead=1))
    jobs = [job(seq) for seq in range(room(core))]
    prepare(core, jobs)
    core.left(jobs[: 64 // 8 - 1])
    assert core.rooms == {}
    assert core.full
    core.left(jobs[:1])
    assert room(core) == 64 // 8
    assert not core.full


def test_no_task_takes_room_from_another() -> None:
    core = core_of(a=TaskOptions(), b=TaskOptions())
    before = core.rooms["b"]
    prepare(core, [job(seq) for seq in range(room(core))])
    assert core.rooms == {"b": before}
    prepare(core, [job(1000, "b")])
    assert core.rooms == {"b": Room(before.jobs - 1, before.bytes)}


def test_messages_are_held_by_their_bytes_too_and_each_task_has_an_equal_share_of_them() -> None:
    core = core_of(a=TaskOptions(), b=TaskOptions())
    large = [job(1, size=SHARE // 2), job(2, size=SHARE // 2 - SHARE // 8 + 1)]
    core.claimed(large)
    assert core.rooms.keys() == {"b"}
    core.left(large[:1])
    assert core.rooms["a"].bytes == SHARE - large[1].size
    assert core.rooms["b"].bytes == SHARE


def test_one_message_larger_than_a_tasks_share_keeps_only_its_own_task_waiting() -> None:
    core = core_of(a=TaskOptions(), b=TaskOptions())
    prepare(core, [job(1, size=100 * SHARE)])
    assert core.rooms.keys() == {"b"}
    batch = core.next_batch(NOW)
    assert batch is not None
    core.left(batch.jobs)
    assert core.rooms["a"].bytes == SHARE


def test_without_batch_tasks_there_is_no_room_for_any_and_none_is_waited_for() -> None:
    core = core_of()
    assert core.rooms == {}
    assert not core.full


def test_a_job_waits_for_another_tasks_look_ahead_at_most() -> None:
    """Its turn comes when what was claimed before it has run, however much of the other task keeps coming."""
    core = core_of(a=TaskOptions(max_batch_size=4, look_ahead=2), b=TaskOptions())
    seqs = itertools.count()
    prepare(core, [job(next(seqs)) for _ in range(room(core))])
    late = job(next(seqs), "b")
    prepare(core, [late])
    batches = 0
    while (batch := core.next_batch(NOW)) is not None and batch.jobs != [late]:
        core.left(batch.jobs)
        prepare(core, [job(next(seqs)) for _ in range(room(core))])
        batches += 1
    assert batches == 2 + 3


def test_a_task_with_batches_of_one_gets_room_for_each_job_that_leaves() -> None:
    core = core_of(a=TaskOptions(max_batch_size=1, look_ahead=1))
    jobs = [job(seq) for seq in range(room(core))]
    prepare(core, jobs)
    assert core.rooms == {}
    core.left(jobs[:1])
    assert room(core) == 1


def test_draining_returns_what_waits_in_order_and_starts_and_claims_nothing_more() -> None:
    core = core_of(a=TaskOptions(max_batch_size=2), b=TaskOptions())
    prepare(core, [job(1), job(2), job(3), job(5), job(4, "b")])
    running = core.next_batch(NOW)
    assert running is not None
    core.started(running, NOW)
    assert [job.seq for job in core.drain()] == [3, 4, 5]
    assert core.next_batch(NOW) is None
    assert core.rooms == {}
    assert core.running is running
    assert core.drain() == []


def test_it_counts_what_was_done() -> None:
    core = core_of(a=TaskOptions())
    assert (core.counts["a"].mean_batch_size, core.counts["a"].padding_share, core.waited_share) == (0, 0, 0)
    for lengths in ([3, 5], [10, 10, 10, 10]):
        prepare(
            core,
            (job(seq, length=length, enqueued_at=NOW - 3, claimed_at=NOW - 2) for seq, length in enumerate(lengths)),
        )
        batch = core.next_batch(NOW)
        assert batch is not None
        core.started(batch, NOW + 1)
        assert batch.started_at == NOW + 1
        batch.finished_at = NOW + 3
        core.finished(batch, whole=True, more=False)
        core.settled(batch, NOW + 3.5)
    counts = core.counts["a"]
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
    assert counts.figures()["queue_ms"] == 2000


def test_time_counts_as_waited_only_where_work_was_there() -> None:
    core = core_of(a=TaskOptions(max_batch_size=1))

    def run_one(started_at: float, finished_at: float) -> None:
        batch = core.next_batch(started_at)
        assert batch is not None
        core.started(batch, started_at)
        batch.finished_at = finished_at
        core.finished(batch, whole=True, more=False)

    prepare(core, [job(0), job(1)])
    run_one(NOW, NOW + 9)
    run_one(NOW + 10, NOW + 19)
    prepare(core, [job(2)])
    run_one(NOW + 100, NOW + 101)
    assert (core.waited_s, core.ran_s) == (1, 19)
    assert core.waited_share == 1 / 20


def cost_of(ms: float) -> CostModel:
    cost = CostModel(32)
    for _ in range(5):
        cost.observe(1, None, ms)
    return cost


@pytest.mark.parametrize("there_already", [True, False])
@pytest.mark.parametrize(("ms", "ahead_s"), [(1000, 0.8), (2, None)])
def test_the_next_batch_is_put_together_just_in_time_where_that_is_worth_a_thread(
    ms: float, ahead_s: float | None, there_already: bool
) -> None:
    options = {"a": TaskOptions(max_batch_size=1)}
    core = Scheduler(options, {"a": GreedyPlanner(options["a"])}, {"a": cost_of(ms)}, held_max_bytes=SHARE)
    prepare(core, [job(0), *([job(1)] if there_already else [])])
    for _ in range(40):
        core.collated(0.1)
    batch = core.next_batch(NOW)
    assert batch is not None
    core.started(batch, NOW)
    if not there_already:
        assert not core.collates_ahead
        prepare(core, [job(1)])
    assert core.collates_ahead is (ahead_s is not None)
    assert core.collate_at == (pytest.approx(NOW + ahead_s, abs=1e-3) if ahead_s else NEVER)
    batch.finished_at = NOW + 1
    core.finished(batch, whole=True, more=False)
    assert not core.collates_ahead


def test_what_ran_out_of_memory_lowers_the_ceiling_at_once() -> None:
    options = {"a": TaskOptions()}
    ceiling = TokenCeiling()
    core = Scheduler(options, {"a": GreedyPlanner(options["a"])}, {}, {"a": ceiling}, held_max_bytes=SHARE)
    core.out_of_memory([job(n, length=10) for n in range(8)])
    assert ceiling.limit is not None
    assert ceiling.limit < 80
    assert core.counts["a"].out_of_memory == 1


class AnyOrder(RuleBasedStateMachine):
    """Everything that an engine tells its core, in any order that an engine could."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.core = core_of(
            a=TaskOptions(max_batch_size=3, look_ahead=2, max_wait_ms=500),
            b=TaskOptions(max_batch_size=4, look_ahead=1, max_batch_tokens=20, max_age_ms=2000),
        )
        self.most = {task: room(self.core, task) for task in "ab"}
        self.made = 0
        self.claimed: list[Job] = []
        self.unprepared: list[Job] = []
        self.waiting: list[Job] = []
        self.running: Batch | None = None
        self.settling: list[Job] = []
        self.left: list[Job] = []

    def leave(self, jobs: list[Job]) -> None:
        self.core.left(jobs)
        self.left += jobs

    @rule(data=st.data())
    def claim(self, data: Any) -> None:
        task = data.draw(st.sampled_from("ab"))
        for _ in range(data.draw(st.integers(0, room(self.core, task)))):
            fields = {
                "size": data.draw(st.integers(0, 100)),
                "length": data.draw(st.integers(0, 30)),
                "priority": data.draw(st.sampled_from([0, 0, 3])),
                "enqueued_at": self.now - data.draw(st.sampled_from([0, 0.2, 3])),
            }
            self.unprepared.append(job(self.made, task, **fields))
            self.core.claimed(self.unprepared[-1:])
            self.claimed += self.unprepared[-1:]
            self.made += 1

    @rule(data=st.data())
    def prepare(self, data: Any) -> None:
        """Some jobs are through preprocessing, in any order; some of them failed."""
        jobs = data.draw(st.permutations(self.unprepared))[: data.draw(st.integers(0, 5))]
        self.unprepared = [job for job in self.unprepared if job not in jobs]
        failed = jobs[: data.draw(st.integers(0, 1))]
        self.core.unprepared(len(failed))
        self.settling += failed
        sound = jobs[len(failed) :]
        if self.core.draining:
            self.core.unprepared(len(sound))
            self.leave(sound)
        else:
            self.core.prepared(sound, self.now)
            self.waiting += sound

    @precondition(lambda self: self.running is None)
    @rule(withdrawn=st.integers(0, 1))
    def run(self, withdrawn: int) -> None:
        """The device is free: it takes a batch, of which a job may not be wanted any more."""
        batch = self.core.next_batch(self.now)
        if batch is None:
            self.check_that_waiting_is_right()
            return
        assert batch.jobs
        assert len(set(map(id, batch.jobs))) == len(batch.jobs)
        assert all(job in self.waiting and job.task == batch.task for job in batch.jobs)
        self.waiting = [job for job in self.waiting if job not in batch.jobs]
        self.leave(batch.jobs[:withdrawn])
        batch.jobs = batch.jobs[withdrawn:]
        if batch.jobs:
            self.core.started(batch, self.now)
            self.running = batch

    def check_that_waiting_is_right(self) -> None:
        if self.core.draining or not self.waiting:
            assert self.core.wake_at() == NEVER
        else:
            assert self.core.wake_at() > self.now
            self.now = self.core.wake_at()
            batch = self.core.next_batch(self.now)
            assert batch is not None
            self.core.started(batch, self.now)
            self.waiting = [job for job in self.waiting if job not in batch.jobs]
            self.running = batch

    @precondition(lambda self: self.running is not None)
    @rule()
    def finish(self) -> None:
        assert self.running is not None
        self.running.finished_at = self.now
        self.core.finished(self.running, whole=True, more=False)
        self.settling += self.running.jobs
        self.running = None

    @rule(data=st.data())
    def settle(self, data: Any) -> None:
        count = data.draw(st.integers(0, len(self.settling)))
        self.leave(self.settling[:count])
        del self.settling[:count]

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.made > 12)
    @rule()
    def drain(self) -> None:
        jobs = self.core.drain()
        assert jobs == sorted(self.waiting, key=lambda job: job.seq)
        self.waiting = []
        self.leave(jobs)

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        running = self.running.jobs if self.running else []
        places = [*self.unprepared, *self.waiting, *running, *self.settling, *self.left]
        assert sorted(job.seq for job in places) == list(range(self.made))
        assert self.core.running is self.running
        assert self.core.preparing == len(self.unprepared)

    @invariant()
    def what_is_held_stays_within_its_bound(self) -> None:
        assert self.core.held == self.made - len(self.left)
        gone = set(map(id, self.left))
        for task in "ab":
            held = [job for job in self.claimed if job.task == task and id(job) not in gone]
            size = sum(job.size for job in held)
            assert len(held) <= self.most[task]
            assert self.core.rooms.get(task) in (None, (self.most[task] - len(held), SHARE - size))
            assert task in self.core.rooms or held or self.core.draining

    def teardown(self) -> None:
        """Whatever happened before, the engine can go on until nothing is held."""
        jobs, self.unprepared = self.unprepared, []
        if self.core.draining:
            self.core.unprepared(len(jobs))
            self.leave(jobs)
        else:
            self.core.prepared(jobs, NOW)
            self.waiting += jobs
        while self.waiting or self.running:
            if self.running is None:
                self.run(0)
            self.finish()
        self.leave(self.settling)
        self.settling = []
        self.every_job_is_in_one_place()
        assert self.core.held == 0


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
