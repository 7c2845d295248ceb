"""Preparing: the task's hooks for each item, in which a bad input fails alone."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ...batchers import Job, Outcome, WorkerDied
from .. import tuning
from .dispatcher import Dispatcher
from .model import Model
from .ports import ResultSink
from .returns import Returns
from .settler import Settler
from .state import EngineState

_GIVEN_UP = (
    "A worker died each of the {} times that one ran this job, the last {} times while the job ran alone. So the job "
    "does not run again."
)


class Preparer:
    """Gives jobs their items. Then they wait for the device, or are settled as failures."""

    def __init__(
        self, state: EngineState, sink: ResultSink, dispatcher: Dispatcher, settler: Settler, returns: Returns
    ) -> None:
        """Prepare jobs for `dispatcher`; hooks run in the context that `sink` makes for a job."""
        self._state = state
        self._sink = sink
        self._dispatcher = dispatcher
        self._settler = settler
        self._returns = returns

    def prepare(self, jobs: list[Job]) -> None:
        """Prepare jobs of one task, or give them back if the engine drains. Claim thread and preprocess threads."""
        state = self._state
        if state.scheduler.draining:  # asked without the lock, and once more below with it
            self._returns.add(jobs)
            return
        if lost := [job for job in jobs if job.deaths >= tuning.MAX_DEATHS]:
            self._give_up(lost)
            jobs = [job for job in jobs if job.deaths < tuning.MAX_DEATHS]
            if not jobs:
                return
        with state.user_code(jobs):
            errors = make_items(state.models[jobs[0].task], jobs, self._sink.current)
        failed = [Outcome(job, error=error) for job, error in zip(jobs, errors, strict=True) if error is not None]
        prepared = [job for job, error in zip(jobs, errors, strict=True) if error is None] if failed else jobs
        with state.lock:
            state.scheduler.move("failed", [outcome.job for outcome in failed])
            draining = state.scheduler.draining
            if draining:
                state.drained.notify_all()
            elif prepared:
                state.scheduler.prepared(prepared, state.clock())
                self._dispatcher.work_came(prepared)
        if failed:
            self._settler.put(failed)
        if draining:
            self._returns.add(prepared)

    def _give_up(self, jobs: Sequence[Job]) -> None:
        with self._state.lock:
            self._state.scheduler.move("failed", jobs)
        errors = [WorkerDied(_GIVEN_UP.format(job.deaths, job.deaths - 1)) for job in jobs]
        self._settler.put([Outcome(job, error=error) for job, error in zip(jobs, errors, strict=True)])


def make_items(
    model: Model, jobs: Sequence[Job], current: Callable[[Job], AbstractContextManager[object]]
) -> list[BaseException | None]:
    """Give each job its item; return, for each, the error that kept it from having one."""
    try:
        if model.prepares_one_by_one:
            items = [_prepare_one(model, job, current) for job in jobs]
        else:
            items = model.prepare_many([(job.args, job.kwargs) for job in jobs])
        measure = _measure if model.measures_items else _accept
        return [measure(model, job, item) for job, item in zip(jobs, items, strict=True)]
    except BaseException as exc:  # SystemExit, too, is an answer to somebody
        if len(jobs) == 1:
            return [exc]
    return [error for job in jobs for error in make_items(model, [job], current)]


def _prepare_one(model: Model, job: Job, current: Callable[[Job], AbstractContextManager[object]]) -> Any:
    with current(job):
        (item,) = model.prepare_many([(job.args, job.kwargs)])
    return item


def _measure(model: Model, job: Job, item: Any) -> BaseException | None:
    if isinstance(item, BaseException):
        return item
    shape_class = getattr(model.batcher, "shape_class", None)
    try:
        job.item = item
        job.length = model.item_length(item)
        job.shape_class = shape_class(item) if shape_class is not None else None
        hash(job.shape_class)  # what cannot be hashed, such as an array, cannot be compared by the planner
    except Exception as exc:
        return exc
    return None


def _accept(_model: Model, job: Job, item: Any) -> BaseException | None:
    if isinstance(item, BaseException):
        return item
    job.item = item
    return None
