"""Preparing: the task's hooks for each item, in which a bad input fails alone."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ...batchers import Batch, Job, Outcome
from .dispatcher import Dispatcher
from .model import Model
from .ports import ResultSink
from .returns import Returns
from .settler import Settler
from .state import EngineState
from .suspects import why_given_up


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
        if state.saw_redelivered and not (jobs := self._without_suspects(jobs)):
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

    def prepare_suspect(self, batch: Batch) -> list[Outcome]:
        """Prepare the one job of a batch that runs, alone; return its outcome if that fails. Device thread."""
        with self._state.user_code(batch.jobs):
            errors = make_items(self._state.models[batch.task], batch.jobs, self._sink.current)
        return [Outcome(batch.jobs[0], error=error, batch=batch) for error in errors if error is not None]

    def _without_suspects(self, jobs: list[Job]) -> list[Job]:
        """Give up on jobs that are not to run any more, and keep suspects unprepared; return the others."""
        most = self._state.tasks[jobs[0].task].options.max_deliveries
        given_up = [Outcome(job, error=error) for job in jobs if (error := why_given_up(job, most)) is not None]
        gone = {outcome.job.seq for outcome in given_up}
        suspects = [job for job in jobs if job.deaths and job.seq not in gone]
        if not given_up and not suspects:
            return jobs
        state = self._state
        with state.lock:
            state.scheduler.move("failed", [outcome.job for outcome in given_up])
            draining = state.scheduler.draining
            if suspects and not draining:
                state.scheduler.prepared(suspects, state.clock())
                self._dispatcher.work_came(suspects)
        if given_up:
            self._settler.put(given_up)
        if draining:
            self._returns.add(suspects)
        return [job for job in jobs if not job.deaths and job.seq not in gone]


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
