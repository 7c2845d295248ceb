"""The engine: threads that move jobs from a front through models and back.

`claim → preprocess → plan → batch → predict → unbatch → postprocess → settle`. The decisions are `Scheduler`'s; a
thread only waits, moves what it is told to move, and reports. One lock guards the core; it is never held during I/O or user
code.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...batchers import BatchFailed, CostModel, GreedyPlanner, Job, Outcome, Planner, TokenCeiling
from ...configs import TaskOptions, WorkerOptions
from .device import Device
from .front import Front
from .model import Model
from .prepare import make_items
from .runner import Runner
from .scheduler import Scheduler
from .settler import Settler
from .stats import Stats, log_batch
from .warmup import warm_up

logger = logging.getLogger(__name__)

#: Seconds that a drain waits for jobs in preparation, to give all back together and so in order.
_RETURN_TOGETHER_S = 1.0


class Engine:
    """Runs models on the jobs of one front, in batches."""

    def __init__(
        self,
        models: Mapping[str, Model],
        front: Front,
        options: WorkerOptions,
        *,
        planners: Mapping[str, Planner] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Get ready to serve `models`, by task name; `planners` default to a `GreedyPlanner` each."""
        task_options = {name: model.options for name, model in models.items()}
        self._ceilings = {name: TokenCeiling() for name in models}
        self._costs = {
            name: CostModel(its.max_batch_size, its.max_batch_tokens, its.preferred_batch_sizes)
            for name, its in task_options.items()
        }
        if planners is None:
            planners = {
                name: GreedyPlanner(its, self._costs[name], self._ceilings[name]) for name, its in task_options.items()
            }
        self._models = models
        self._front = front
        self._options = options
        self._task_options = task_options
        self._planners = planners
        self._clock = clock
        self._core = Scheduler(
            task_options, planners, self._costs, self._ceilings, held_max_bytes=options.held_max_bytes
        )
        # One lock, and a condition for each thing that a thread waits for: waking the wrong thread costs the GIL twice.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._left = threading.Condition(self._lock)
        self._settler = Settler(models, front, self._settled, clock)
        self._runner = Runner(models, options.device, clock)
        self._device = Device(
            self._core,
            self._lock,
            self._runner,
            front,
            self._settler,
            clock=clock,
            leave=self._leave,
            return_=self._return,
        )
        self._preprocess = ThreadPoolExecutor(options.preprocess_threads, thread_name_prefix="batchery-preprocess")
        self._threads = {
            name: threading.Thread(target=self._guard, args=(target,), name=f"batchery-{name}", daemon=True)
            for name, target in (
                ("claim", self._claim),
                ("collate", self._device.collate_ahead),
                ("device", self._device.run),
                ("settle", self._settler.run),
            )
        }
        #: Set whenever something has left, and so may have made room; the claim thread clears it before each claim.
        self.freed = threading.Event()
        #: Whether the device or the settle thread has died: what they have in hand will never leave.
        self._stuck = False
        #: Jobs to be given back together, in order; None while each may go back by itself.
        self._returning: list[Job] | None = None

    # -- Life --------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load every model. Raises what a model's `load` raises: a worker that cannot serve must not consume."""
        self._runner.load()
        for name, model in self._models.items():
            device = model.ensure_loaded(self._options.device)
            seconds = self._options.warm_up_s
            warm_up(model, device, self._costs[name], self._ceilings[name], seconds=seconds, clock=self._clock)

    def start(self) -> None:
        """Start claiming and running; `load` comes first."""
        for thread in self._threads.values():
            thread.start()

    def drain(self, timeout: float) -> bool:
        """Claim no more, give back what is not running, and finish what is; return whether all was done in time.

        Once all is done no thread is left. Draining again, or an engine that was not started, does no harm.
        """
        deadline = self._clock() + timeout
        with self._lock:
            self._returning = [*(self._returning or ()), *self._core.drain(), *self._device.take_ready()]
            self._room.notify_all()
        self._front.interrupt()
        self._join("claim", timeout)
        self._preprocess.shutdown(wait=False)
        with self._lock:
            self._left.wait_for(self._all_returned, min(timeout, _RETURN_TOGETHER_S))
            jobs, self._returning = self._returning, None
        self._give_back(sorted(jobs or (), key=lambda job: job.seq))
        with self._lock:
            self._left.wait_for(lambda: self._core.held == 0 or self._stuck, max(0.0, deadline - self._clock()))
            done = self._core.held == 0
            self._device.stop()
        if done or self._stuck:
            self._settler.close()
        if done:
            for name in ("collate", "device", "settle"):
                self._join(name)
            self._preprocess.shutdown()
        return done

    def _all_returned(self) -> bool:
        return self._core.preparing == 0 and not self._device.collating

    def _join(self, name: str, timeout: float | None = None) -> None:
        thread = self._threads[name]
        if thread.ident is not None:  # it was started
            thread.join(timeout)

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as exc:  # SystemExit, too, would end the thread without a word
            logger.critical("The engine cannot go on: %r", exc, exc_info=True)
            with self._lock:
                self._core.draining = True
                self._stuck = self._stuck or target != self._claim
                self._room.notify_all()
                self._left.notify_all()
            self._front.broken(exc if isinstance(exc, Exception) else BatchFailed(f"The engine got {exc!r}."))

    # -- What others may ask -----------------------------------------------------------------------------------------

    @property
    def hung(self) -> bool:
        """Whether the running batch has exceeded its time limit."""
        with self._lock:
            batch = self._core.running
            if batch is None:
                return False
            return self._clock() - batch.started_at > self._task_options[batch.task].batch_time_limit_s

    @property
    def running(self) -> list[Job]:
        """The jobs that run now."""
        with self._lock:
            return list(self._core.running.jobs) if self._core.running else []

    def stats(self) -> dict[str, int | float]:
        """Return what was done so far, as flat numbers."""
        with self._lock:
            counts = functools.reduce(Stats.merge, self._core.counts.values(), Stats())
            return {
                "batches": counts.batches,
                "jobs": counts.jobs,
                "failed": counts.failed,
                "held": self._core.held,
                "mean_batch_size": round(counts.mean_batch_size, 2),
                "padding_share": round(counts.padding_share, 4),
                "device_waited_share": round(self._core.waited_share, 4),
            }

    def figures(self, task: str) -> dict[str, Any]:
        """Return statistics of one task's batches, why they were not larger, and the task's token ceiling."""
        with self._lock:
            return {
                **self._core.counts[task].figures(),
                "token_ceiling": self._ceilings[task].limit,
            }

    def set_options(self, task: str, options: TaskOptions) -> None:
        """Plan `task`'s batches under other options from now on. Any thread."""
        with self._lock:
            self._task_options[task] = options
            self._planners[task].set_options(options)
            self._core.bound(self._task_options)
            # A batch may be due now, and more may be claimed.
            self._device.work_came()
            self._room.notify_all()

    # -- Claim and preprocess ----------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take in jobs that came another way than `Front.claim`, each at most once. Any thread."""
        if not jobs:
            return
        with self._lock:
            self._core.claimed(jobs)
        by_task: dict[str, list[Job]] = {}
        now = self._clock()
        for job in jobs:
            job.claimed_at = now
            by_task.setdefault(job.task, []).append(job)
        for name, group in by_task.items():
            self._prepare_where_it_belongs(self._models[name], group)

    def poke(self) -> None:
        """Call `Front.settle` soon, though nothing was run: it may have acknowledgements of its own. Any thread."""
        self._settler.put([])

    def _claim(self) -> None:
        while True:
            with self._lock:
                self._room.wait_for(lambda: self._core.draining or not self._core.full)
                if self._core.draining:
                    return
                self.freed.clear()
                rooms = self._core.rooms
            self.submit(self._front.claim(rooms))

    def _prepare_where_it_belongs(self, model: Model, jobs: list[Job]) -> None:
        if not model.runs_user_code_per_item:
            self._prepare(model, jobs)
            return
        # An equal part for each thread, and no part so large that the device waits for it.
        size = min(-(-len(jobs) // self._options.preprocess_threads), self._task_options[model.name].max_batch_size)
        for start in range(0, len(jobs), size):
            part = jobs[start : start + size]
            try:
                self._preprocess.submit(self._prepare, model, part)
            except RuntimeError:  # the pool is shut down: we are draining
                self._return_unprepared(part)

    def _prepare(self, model: Model, jobs: list[Job]) -> None:
        with self._lock:
            draining = self._core.draining
        if draining:
            self._return_unprepared(jobs)
            return
        errors = make_items(model, jobs, self._front.current)
        failed = [Outcome(job, error=error) for job, error in zip(jobs, errors, strict=True) if error is not None]
        prepared = [job for job, error in zip(jobs, errors, strict=True) if error is None] if failed else jobs
        if failed:
            self._settler.put(failed)
        with self._lock:
            self._core.unprepared(len(failed))
            if not self._core.draining:
                self._core.prepared(prepared, self._clock())
                self._device.work_came(prepared)
                prepared = []
            else:
                self._left.notify_all()
        if prepared:
            self._return_unprepared(prepared)

    def _return_unprepared(self, jobs: list[Job]) -> None:
        """Give back jobs that were still preparing when the engine began to drain."""
        with self._lock:
            self._core.unprepared(len(jobs))
        self._return(jobs)

    def _return(self, jobs: list[Job]) -> None:
        """Give back jobs that an engine that drains does not run: together with others, if those are on their way."""
        with self._lock:
            if self._returning is not None:
                self._returning += jobs
                jobs = []
            self._left.notify_all()
        self._give_back(jobs)

    def _give_back(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self._front.give_back(jobs)
            self._leave(jobs)

    def _settled(self, outcomes: list[Outcome]) -> None:
        now, done = self._clock(), None
        with self._lock:
            for outcome in outcomes:
                if outcome.error is not None:
                    self._core.counts[outcome.job.task].failed += 1
            batch = outcomes[0].batch if outcomes else None
            if batch is not None:
                batch.settled += len(outcomes)
                if batch.settled == len(batch.jobs):
                    device_waits = self._core.results_wait
                    self._core.settled(batch, now)
                    if device_waits:
                        self._device.work_came()
                    done = batch
        self._leave([outcome.job for outcome in outcomes])
        if done is not None:
            log_batch(done, now)

    def _leave(self, jobs: Sequence[Job]) -> None:
        with self._lock:
            self._core.left(jobs)
            if self._core.draining:
                self._left.notify_all()
            elif not self._core.full:
                self._room.notify_all()
        self.freed.set()
