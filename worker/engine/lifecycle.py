"""The engine's life: load, start, drain; and what others may ask while it runs."""

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

from ...batchers import BatchFailed, Job, JobState, without_text
from ...configs import TaskOptions
from .. import tuning
from .loop import Pipeline
from .ports import JobSource, ResultSink
from .returns import Returns
from .state import EngineState
from .stats import Stats
from .warmup import warm_up

logger = logging.getLogger(__name__)


class Engine:
    """Runs models, in batches, on the jobs of one source; their outcomes go to one sink."""

    def __init__(self, state: EngineState, source: JobSource, sink: ResultSink) -> None:
        """Get ready to serve the models of `state`, which source and sink may already use."""
        #: What the engine shares with its source and its sink.
        self.state = state
        state.on_work = sink.working
        self._source = source
        self._sink = sink
        self._returns = Returns(state, source)
        self._pipeline = pipeline = Pipeline(state, source, sink, self._returns)
        #: Whether a thread died while it held jobs, so that these can never leave.
        self._stuck = False
        loops = {
            "claim": pipeline.claim_jobs,
            "collate": pipeline.collate_batches,
            "device": pipeline.run_batches,
            "settle": pipeline.settle_outcomes,
        }
        loops |= {
            f"preprocess-{name}-{number}": functools.partial(pipeline.prepare_jobs, name)
            for name, task in state.tasks.items()
            for number in range(task.options.preprocess_threads)
        }
        self._threads = {
            name: threading.Thread(target=self._guard, args=(name, loop), name=f"batchery-{name}", daemon=True)
            for name, loop in loops.items()
        }

    def load(self) -> None:
        """Load every model. Raises what a model's `load` raises: a worker that cannot serve must not consume."""
        state = self.state
        for name, device in self._pipeline.runner.load().items():
            task = state.tasks[name]
            seconds = state.options.warm_up_s
            warm_up(state.models[name], device, task.cost, task.ceiling, seconds=seconds, clock=state.clock)

    def start(self) -> None:
        """Start claiming and running; `load` comes first."""
        for thread in self._threads.values():
            thread.start()

    def drain(self, timeout: float) -> bool:
        """Claim no more, give back what does not run, and finish what does; return whether that was done in time.

        `timeout` is in seconds. Once all is done no thread is left. Draining again, or an engine that was not started,
        does no harm.
        """
        state, scheduler, pipeline = self.state, self.state.scheduler, self._pipeline
        timeout = min(timeout, threading.TIMEOUT_MAX)
        deadline = state.clock() + timeout
        self._returns.gather(pipeline.dispatcher.plan)
        self._source.interrupt()
        self._join("claim", timeout)
        with state.lock:
            state.drained.wait_for(self._all_returned, min(timeout, tuning.GIVE_BACK_TOGETHER_S))
        self._returns.release()
        with state.lock:
            state.drained.wait_for(
                lambda: scheduler.held == 0 or self._stuck or state.hung, max(0.0, deadline - state.clock())
            )
            done = scheduler.held == 0
            pipeline.dispatcher.stop()
        if done or self._stuck:
            pipeline.settler.close()
        if done:
            for name in self._threads:
                self._join(name)
        return done

    def _all_returned(self) -> bool:
        preparing = self.state.scheduler.count(JobState.PREPARING) > 0
        return self._stuck or not (preparing or self._pipeline.dispatcher.plan.collating)

    def _join(self, name: str, timeout: float | None = None) -> None:
        thread = self._threads[name]
        if thread.ident is not None:  # it was started
            thread.join(timeout)

    def _guard(self, name: str, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as exc:  # SystemExit, too, would end the thread without a word
            logger.critical("The engine cannot go on, because its %s thread failed: %s", name, without_text(exc))
            state = self.state
            with state.lock:
                state.scheduler.draining = True
                self._stuck = self._stuck or name != "claim"
                for condition in (state.claimable, *state.unprepared.values(), state.drained):
                    condition.notify_all()
            self._sink.broken(exc if isinstance(exc, Exception) else BatchFailed(f"The engine got {exc!r}."))

    # -- What others may ask -----------------------------------------------------------------------------------------

    @property
    def suspects(self) -> list[Job]:
        """Jobs that may be why the engine cannot go on: user code hangs on them, or a thread died while they ran."""
        return [*self.state.hung_jobs, *(self.state.running if self._stuck else ())]

    def stats(self) -> dict[str, int | float]:
        """Return what was done so far, as flat numbers."""
        with self.state.lock:
            scheduler = self.state.scheduler
            total = functools.reduce(Stats.merge, (task.stats for task in scheduler.tasks.values()), Stats())
            return {
                "batches": total.batches,
                "jobs": total.jobs,
                "failed": total.failed,
                "held": scheduler.held,
                "mean_batch_size": round(total.mean_batch_size, 2),
                "padding_share": round(total.padding_share, 4),
                "device_waited_share": round(scheduler.device_time.idle_share, 4),
            }

    def task_stats(self, name: str) -> dict[str, Any]:
        """Return what one task's batches were like, and why they were not larger."""
        with self.state.lock:
            task = self.state.tasks[name]
            return {**task.stats.summary(), "token_ceiling": task.ceiling.limit}

    def set_options(self, name: str, options: TaskOptions) -> None:
        """Plan a task's batches under other options from now on. Any thread."""
        with self.state.lock:
            task = self.state.tasks[name]
            task.options = options
            task.planner.set_options(options)
            # A batch may be due now, and more may be claimed.
            self._pipeline.dispatcher.work_came()
            self.state.claimable.notify_all()
