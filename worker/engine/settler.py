"""Settling: postprocess outcomes, and let the sink store and acknowledge them."""

import logging
import queue
import threading
from collections import Counter
from collections.abc import Sequence

from ...batchers import Batch, BatchFailed, Job, Outcome, without_text
from .. import tuning
from .dispatcher import Dispatcher
from .model import Model
from .ports import ResultSink
from .state import EngineState
from .stats import log_batch

logger = logging.getLogger(__name__)


class NotStored(BatchFailed):
    """The result of a job was there, but could not be stored."""


class Settler:
    """Settles outcomes in order on its own thread. Outcomes that arrive during one settle are settled together next.

    Where waking that thread costs more than it saves, the device thread settles the outcomes of its batch by itself.
    """

    def __init__(self, state: EngineState, sink: ResultSink, dispatcher: Dispatcher) -> None:
        """Settle through `sink`; `dispatcher` may wait until results are stored."""
        self._dispatcher = dispatcher
        self._state = state
        self._sink = sink
        self._queue: queue.SimpleQueue[list[Outcome] | None] = queue.SimpleQueue()
        self._busy = threading.Lock()
        #: Names of the tasks whose hook may ask which job it works on.
        self._hooked = {name for name, model in state.models.items() if model.postprocesses}
        #: Seconds that the last settle took.
        self._last_s = float("inf")
        #: The same for each outcome: a store that is asked for each result by itself would keep the device waiting.
        self._last_each_s = 0.0

    # -- Handing over ------------------------------------------------------------------------------------------------

    def put(self, outcomes: list[Outcome]) -> None:
        """Leave outcomes to the settle thread. Any thread."""
        self._queue.put(outcomes)

    def take(self, outcomes: list[Outcome]) -> None:
        """Settle outcomes of a batch here and now where that pays, else leave them to the settle thread. Device thread.

        A suspect is settled here in any case, because nothing else may run meanwhile.
        It pays while no other job waits and the last settle was quick, and for a large batch that took no time to run.
        """
        batch = outcomes[0].batch
        if batch is not None and batch.closed_by == "suspect":
            self.settle(outcomes)
            return
        lone = not self._state.scheduler.work_waits  # asked without the lock, because a stale answer does no harm
        if lone:
            here = self._last_s < tuning.QUICK_SETTLE_S
        else:
            instant = batch is not None and batch.run_s < tuning.INSTANT_RUN_S
            here = (
                instant and len(outcomes) >= tuning.INSTANT_RUN_JOBS and self._last_each_s < tuning.QUICK_SETTLE_EACH_S
            )
        if here and self._queue.empty() and self._busy.acquire(blocking=False):
            try:
                self._settle(outcomes)
            finally:
                self._busy.release()
        else:
            self.put(outcomes)

    def close(self) -> None:
        """End the settle thread once everything is settled that was put before. Any thread."""
        self._queue.put(None)

    # -- Settle thread -----------------------------------------------------------------------------------------------

    def wait_for_outcomes(self) -> list[Outcome] | None:
        """Return the outcomes to settle in one step, all that have arrived; None after `close`."""
        first = self._queue.get()
        if first is None:
            return None
        outcomes = [*first]
        while len(outcomes) < tuning.SETTLE_TOGETHER and not self._queue.empty():  # nobody else takes from the queue
            if (more := self._queue.get()) is None:
                self.close()  # after these
                break
            outcomes += more
        return outcomes

    def settle(self, outcomes: list[Outcome]) -> None:
        """Settle outcomes, after the device thread has finished a settle of its own."""
        with self._busy:
            self._settle(outcomes)

    # -- Either thread -----------------------------------------------------------------------------------------------

    def _settle(self, outcomes: list[Outcome]) -> None:
        state = self._state
        began = state.clock()
        jobs = [outcome.job for outcome in outcomes]
        with state.user_code(jobs):
            for outcome in outcomes:
                if outcome.error is not None:
                    continue
                model = state.models[outcome.job.task]
                if outcome.job.task in self._hooked:
                    with self._sink.current(outcome.job):
                        postprocess(model, outcome)
                else:
                    postprocess(model, outcome)
        self._store(outcomes)
        now = state.clock()
        self._last_s = now - began
        self._last_each_s = self._last_s / max(1, len(outcomes))
        for batch in self._leave(outcomes, jobs, now):
            log_batch(batch, now)

    def _store(self, outcomes: list[Outcome]) -> None:
        """Let the sink settle outcomes. If it raises, settle the halves, down to the one outcome that fails."""
        try:
            self._sink.settle(outcomes)
        except Exception as exc:
            logger.error("%d outcomes could not be stored: %s", len(outcomes), without_text(exc))
            if len(outcomes) > 1:
                middle = len(outcomes) // 2
                self._store(outcomes[:middle])
                self._store(outcomes[middle:])
            elif isinstance(outcomes[0].error, NotStored):  # not even its failure can be stored
                raise
            else:
                outcomes[0].error = NotStored(f"The result could not be stored: {exc!r}")
                self._store(outcomes)

    def _leave(self, outcomes: Sequence[Outcome], jobs: Sequence[Job], now: float) -> list[Batch]:
        """Count outcomes that are settled, and hold their jobs no longer; return the batches settled as a whole."""
        state, done = self._state, []
        with state.lock:
            # A suspect waits for the results of all other jobs to be stored.
            device_waits = state.scheduler.results_wait or bool(state.scheduler.suspects)
            for outcome in [outcome for outcome in outcomes if outcome.error is not None]:
                state.tasks[outcome.job.task].stats.failed += 1
            for batch, count in Counter(outcome.batch for outcome in outcomes if outcome.batch is not None).items():
                batch.settled += count
                if batch.settled == len(batch.jobs):
                    state.scheduler.settled(batch, now)
                    done.append(batch)
            state.leave(jobs, "settled")
            if device_waits:
                self._dispatcher.work_came()
        return done


def postprocess(model: Model, outcome: Outcome) -> None:
    """Turn an outcome's output into what its caller gets, or into an error."""
    try:
        outcome.value = model.postprocess(outcome.value)
    except BaseException as exc:  # SystemExit, too, is an answer to somebody
        outcome.error = exc
    if isinstance(outcome.value, BaseException):
        outcome.error = outcome.value
