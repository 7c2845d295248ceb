"""The engine: threads that move jobs from a front through models and back.

`claim → preprocess → plan → batch → predict → unbatch → postprocess → settle`. The decisions are `Core`'s; a thread
only waits, moves what it is told to move, and reports. One lock guards the core; it is never held during I/O or user
code.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ...batchers import Batch, BatchFailed, GreedyPlanner, Job, Outcome, Planner
from ...batchers.forward import forward
from ...batchers.isolation import run_isolated
from ...configs import WorkerOptions
from .core import Core
from .front import Front
from .items import make_items
from .model import Model
from .settler import Settler

logger = logging.getLogger(__name__)

_NEVER = float("inf")

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
        if planners is None:
            planners = {name: GreedyPlanner(options) for name, options in task_options.items()}
        self._models = models
        self._front = front
        self._options = options
        self._task_options = task_options
        self._clock = clock
        self._core = Core(task_options, planners)
        # One lock, and a condition for each thing that a thread waits for: waking the wrong thread costs the GIL twice.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._work = threading.Condition(self._lock)
        self._left = threading.Condition(self._lock)
        self._settler = Settler(models, front, self._settled, clock)
        self._preprocess = ThreadPoolExecutor(options.preprocess_threads, thread_name_prefix="batchery-preprocess")
        self._threads = {
            name: threading.Thread(target=self._guard, args=(target,), name=f"batchery-{name}", daemon=True)
            for name, target in (("claim", self._claim), ("device", self._run), ("settle", self._settler.run))
        }
        self._stopping = False
        #: Whether the device or the settle thread has died: what they have in hand will never leave.
        self._stuck = False
        #: Jobs to be given back together, in order; None while each may go back by itself.
        self._returning: list[Job] | None = None

    # -- Life --------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load every model. Raises what a model's `load` raises: a worker that cannot serve must not consume."""
        for model in self._models.values():
            began = self._clock()
            device = model.ensure_loaded(self._options.device)
            logger.info("Task %s is loaded on %s (%.1f s).", model.name, device, self._clock() - began)

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
            self._returning = [*(self._returning or ()), *self._core.drain()]
            self._room.notify_all()
        self._front.interrupt()
        self._join("claim", timeout)
        self._preprocess.shutdown(wait=False)
        with self._lock:
            self._left.wait_for(lambda: self._core.preparing == 0, min(timeout, _RETURN_TOGETHER_S))
            jobs, self._returning = self._returning, None
        self._give_back(sorted(jobs or (), key=lambda job: job.seq))
        with self._lock:
            self._left.wait_for(lambda: self._core.held == 0 or self._stuck, max(0.0, deadline - self._clock()))
            done = self._core.held == 0
            self._stopping = True
            self._work.notify_all()
        if done or self._stuck:
            self._settler.close()
        if done:
            self._join("device")
            self._join("settle")
            self._preprocess.shutdown()
        return done

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
            counts = self._core.counts
            return {
                "batches": counts.batches,
                "jobs": counts.jobs,
                "failed": counts.failed,
                "held": self._core.held,
                "mean_batch_size": round(counts.mean_batch_size, 2),
                "padding_share": round(counts.padding_share, 4),
            }

    # -- Claim and preprocess ----------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take in jobs that came another way than `Front.claim`, each at most once. Any thread."""
        if not jobs:
            return
        with self._lock:
            self._core.claimed(len(jobs))
        by_task: dict[str, list[Job]] = {}
        for job in jobs:
            by_task.setdefault(job.task, []).append(job)
        for name, group in by_task.items():
            self._prepare_where_it_belongs(self._models[name], group)

    def poke(self) -> None:
        """Call `Front.settle` soon, though nothing was run: it may have acknowledgements of its own. Any thread."""
        self._settler.put([])

    def _claim(self) -> None:
        while True:
            with self._lock:
                self._room.wait_for(lambda: self._core.room or self._core.draining)
                room = self._core.room
            if not room:
                return
            self.submit(self._front.claim(room))

    def _prepare_where_it_belongs(self, model: Model, jobs: list[Job]) -> None:
        if not model.runs_user_code_per_item:
            self._prepare(model, jobs)
            return
        # An equal part for each thread, and no part so large that the device waits for it.
        size = min(-(-len(jobs) // self._options.preprocess_threads), model.options.max_batch_size)
        for start in range(0, len(jobs), size):
            part = jobs[start : start + size]
            try:
                self._preprocess.submit(self._prepare, model, part)
            except RuntimeError:  # the pool is shut down: we are draining
                self._return(part)

    def _prepare(self, model: Model, jobs: list[Job]) -> None:
        with self._lock:
            draining = self._core.draining
        if draining:
            self._return(jobs)
            return
        errors = make_items(model, jobs, self._front.current)
        failed = [Outcome(job, error=error) for job, error in zip(jobs, errors, strict=True) if error is not None]
        prepared = [job for job, error in zip(jobs, errors, strict=True) if error is None] if failed else jobs
        if failed:
            self._settler.put(failed)
        with self._lock:
            self._core.unprepared(len(failed))
            if not self._core.draining:
                self._core.prepared(prepared)
                prepared = []
                self._work.notify_all()
            else:
                self._left.notify_all()
        if prepared:
            self._return(prepared)

    def _return(self, jobs: list[Job]) -> None:
        """Give back jobs that were still preparing when the engine began to drain."""
        with self._lock:
            self._core.unprepared(len(jobs))
            if self._returning is not None:
                self._returning += jobs
                jobs = []
            self._left.notify_all()
        self._give_back(jobs)

    def _give_back(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self._front.give_back(jobs)
            self._leave(len(jobs))

    def _settled(self, count: int, failed: int) -> None:
        with self._lock:
            self._core.counts.failed += failed
        self._leave(count)

    def _leave(self, count: int) -> None:
        with self._lock:
            self._core.left(count)
            if self._core.draining:
                self._left.notify_all()
            elif self._core.room:
                self._room.notify_all()

    # -- Plan and run ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            model = self._models[batch.task]
            device = model.ensure_loaded(self._options.device)
            self._front.started(batch)
            for outcomes in run_isolated(batch, lambda items: forward(model, items, device)):  # noqa: B023 - runs now
                batch.finished_at = self._clock()
                if self._core.nothing_waits:  # asked without the lock: a stale answer does no harm
                    self._settler.settle_soonest(outcomes)
                else:
                    self._settler.put(outcomes)
            with self._lock:
                self._core.finished(batch)
            logger.info(
                "Task %s: a batch of %d ran in %.1f ms (closed by: %s).",
                batch.task,
                len(batch.jobs),
                1000 * (batch.finished_at - batch.started_at),
                batch.closed_by,
            )
        # After a drain that gave up: what has run since is settled all the same, if the front still can.
        self._settler.close()

    def _next_batch(self) -> Batch | None:
        while (batch := self._wait_for_batch()) is not None:
            wanted = self._front.still_wanted(batch.jobs)
            if len(wanted) < len(batch.jobs):
                self._leave(len(batch.jobs) - len(wanted))
                batch.jobs = wanted
            if wanted:
                with self._lock:
                    self._core.started(batch, self._clock())
                return batch
        return None

    def _wait_for_batch(self) -> Batch | None:
        with self._lock:
            while not self._stopping:
                now = self._clock()
                batch = self._core.next_batch(now)
                if batch is not None:
                    return batch
                wake_at = self._core.wake_at()
                self._work.wait(None if wake_at == _NEVER else max(0.0, wake_at - now))
        return None
