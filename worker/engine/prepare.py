"""The per-item steps around a batch, and what becomes of a job whose step fails: it fails alone."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ...batchers import Job, Outcome
from .model import Model


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


def postprocess(model: Model, outcome: Outcome) -> None:
    """Turn an outcome's output into what its caller gets, or into an error."""
    try:
        outcome.value = model.postprocess(outcome.value)
    except BaseException as exc:  # SystemExit, too, is an answer to somebody
        outcome.error = exc
    if isinstance(outcome.value, BaseException):
        outcome.error = outcome.value
