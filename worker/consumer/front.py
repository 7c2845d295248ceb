"""Until the engine takes a source and a sink: makes a front of them."""

from collections.abc import Mapping, Sequence

from ...batchers import Job
from ...configs import WorkerOptions
from ...producer import BatchTask
from .. import engine as engines
from ..engine import JobSource, ResultSink


class EngineState:
    def __init__(self, tasks: Mapping[str, BatchTask], options: WorkerOptions) -> None:
        self.tasks, self.options = tasks, options
        self.engine: engines.Engine

    @property
    def hung(self) -> bool:
        return self.engine.hung

    @property
    def running(self) -> Sequence[Job]:
        return self.engine.running

    def submit(self, jobs: Sequence[Job]) -> bool:
        self.engine.submit(jobs)
        return True

    def wait_for_capacity(self, timeout: float) -> None:
        self.engine.freed.wait(timeout)


class _Front:
    def __init__(self, source: JobSource, sink: ResultSink) -> None:
        self.claim = source.claim
        self.give_back, self.interrupt = source.give_back, source.interrupt
        self.current, self.drop_cancelled, self.started = sink.current, sink.drop_cancelled, sink.started
        self.settle, self.broken = sink.settle, sink.broken


def Engine(state: EngineState, source: JobSource, sink: ResultSink) -> engines.Engine:
    state.engine = engines.Engine(state.tasks, _Front(source, sink), state.options)
    return state.engine
