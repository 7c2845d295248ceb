"""The pipeline on one page: claim → prepare → plan → run → settle.

Each method of `Pipeline` is the loop of one thread (preprocess threads: one or more for each task), and each stage is
one call into one file:

claim    the source: `consumer/fast/fetch.py` at a Celery worker, `local_calls.py` in a `Host`
prepare  `prepare.py`: the task's hooks for each item, in which bad input fails alone
plan     `dispatcher.py`: which jobs run next, and when they are put together, as `scheduler.py` and the planner decide
run      `runner.py`: batch → predict → unbatch, on the device
settle   `settler.py`: postprocess, and then the sink: `consumer/fast/settle.py`, or `local_calls.py`

A loop ends when its wait returns None, because the engine drains (`lifecycle.py`).
"""

from collections.abc import Iterator

from ...batchers import Outcome
from .dispatcher import Dispatcher
from .open_plan import Ready
from .ports import JobSource, ResultSink
from .prepare import Preparer
from .returns import Returns
from .runner import Runner
from .settler import Settler
from .state import EngineState


class Pipeline:
    """How a job travels from its source to its sink."""

    def __init__(self, state: EngineState, source: JobSource, sink: ResultSink, returns: Returns) -> None:
        """Connect the stages."""
        self._state, self._source, self._sink, self._returns = state, source, sink, returns
        self.dispatcher = Dispatcher(state, sink)
        self.settler = Settler(state, sink, self.dispatcher)
        self.runner = Runner(state)
        self._preparer = Preparer(state, sink, self.dispatcher, self.settler, returns)

    def claim_jobs(self) -> None:
        """Claim thread: take what there is capacity for, and prepare what needs no user code."""
        while (capacity := self._state.wait_until_claimable()) is not None:
            for jobs in self._state.take_in(self._source.claim(capacity)):
                self._preparer.prepare(jobs)

    def prepare_jobs(self, task: str) -> None:
        """Preprocess threads of one task: turn calls into items. Then the jobs wait for the device."""
        while (jobs := self._state.wait_for_unprepared(task)) is not None:
            self._preparer.prepare(jobs)

    def run_batches(self) -> None:
        """Device thread: run one planned batch after the other, and hand over what becomes of its jobs."""
        while (ready := self.dispatcher.wait_for_batch()) is not None:
            batch, parts = ready.batch, 0
            self._sink.started(batch)
            for outcomes in self._outcomes(ready):
                self.dispatcher.ran(batch, outcomes)
                self.settler.take(outcomes)
                parts += 1
            self.dispatcher.finished(batch, whole=parts == 1)
        self.settler.close()

    def _outcomes(self, ready: Ready) -> Iterator[list[Outcome]]:
        """Run a batch; yield the outcomes of each part. A suspect is prepared here, too, so that it is alone."""
        batch = ready.batch
        if batch.closed_by == "suspect" and (failed := self._preparer.prepare_suspect(batch)):
            yield failed
        else:
            yield from self.runner.run(batch, ready.collated, self.dispatcher.out_of_memory)

    def collate_batches(self) -> None:
        """Collate thread: put the next batch together while one runs."""
        while (batch := self.dispatcher.wait_for_next()) is not None:
            if not self.dispatcher.collated(batch, self.runner.collate(batch)):
                self._returns.add(batch.jobs)

    def settle_outcomes(self) -> None:
        """Settle thread: postprocess, store and acknowledge all outcomes that have arrived."""
        while (outcomes := self.settler.wait_for_outcomes()) is not None:
            self.settler.settle(outcomes)
