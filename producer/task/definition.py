"""Checks a task where it is defined, so that what cannot work fails there and not in a worker."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from celery import Task

from ...configs import TASK_OPTION_NAMES, TaskOptions
from .. import private
from .hooks import TaskHooks
from .signature import CallSignature, attempt

_LIMIT = "a thread cannot be ended from outside. Set batch_time_limit_s, which bounds the run of a batch."
_REQUEST = "the worker makes no request of Celery's for most calls. Write hooks: preprocess, predict, postprocess."
#: Options of Celery's that a batch task cannot keep: the values that it can, and the reason.
_CELERYS_OPTIONS: dict[str, tuple[tuple[object, ...], str]] = {
    "reject_on_worker_lost": ((True,), "the jobs of a worker that died always run again. Leave it out."),
    "retry_on_worker_lost": ((False,), "the jobs of a worker that died run again without a new message. Leave it out."),
    "time_limit": ((), _LIMIT),
    "soft_time_limit": ((), _LIMIT),
    "Request": ((Task.Request,), _REQUEST),
    "Strategy": ((Task.Strategy,), _REQUEST),
    "__call__": ((), "a worker runs batches, and calls the hooks instead. Put the code into preprocess or predict."),
}


@contextlib.contextmanager
def error_context(task: Any) -> Iterator[None]:
    """Say in a definition's error which task, or class of tasks, it is about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        name = task.name or getattr(task, "__qualname__", type(task).__qualname__)
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"Task {name}: {error}") from error


def read_definition(task_class: Any) -> tuple[CallSignature, bool]:
    """Return the signature of one call, and whether `run` gets its parameters as columns."""
    if private.pydantic_dump(task_class) is not None:
        advice = "Write a BatchTask class and validate in its preprocess()."
        raise TypeError(f"pydantic=True validates one call, but this function gets whole batches. {advice}")
    found = {name: inspect.getattr_static(task_class, name) for name in ("preprocess", "preprocess_many", "run")}
    given = [name for name, attribute in found.items() if attribute is not vars(TaskHooks)[name]]
    source = given[0] if given else "preprocess"
    signature = CallSignature(found[source])
    if source == "run" or "preprocess_many" in given:
        signature.require_columns("the function" if source == "run" else source)
    if "run" in given and source != "run" and task_class.predict is TaskHooks.predict:
        run = CallSignature(found["run"])
        if isinstance(attempt(run.item, [None], {}), TypeError):
            raise TypeError(f"with {source} the function gets one argument, the batch: give it one parameter.")
    return signature, source == "run" and signature.many


def check_budget(task: Any, max_batch_tokens: int | None) -> None:
    """Raise a ValueError if the task cannot keep a token budget; its batcher may be made by `load`."""
    if max_batch_tokens is not None and task.length is None and not hasattr(task.batcher, "length"):
        advice = "give length=, or a batcher that has a length()."
        raise ValueError(f"max_batch_tokens = {max_batch_tokens!r} needs to know an item's length: {advice}")


def check_options_of_celery(task_class: Any) -> None:
    """Raise a TypeError if the class itself sets an option of Celery's that would have no effect.

    What it does not set comes from the app's settings, which are for other tasks, too.
    """
    for name, (possible, reason) in _CELERYS_OPTIONS.items():
        value = vars(task_class).get(name)
        if value is not None and value not in possible:
            shown = "" if callable(value) else f" = {value!r}"
            raise TypeError(f"{name}{shown} is not possible: {reason}")


def check_options(task_class: Any) -> None:
    """Raise a TypeError or ValueError if the task has an option that is not possible."""
    if not task_class.acks_late:
        reason = "a job is acknowledged with its result, or a worker that dies would lose its batch."
        raise TypeError(f"acks_late = {task_class.acks_late!r} is not possible: {reason} Leave acks_late out.")
    read_options(task_class)


def read_options(task: Any) -> TaskOptions:
    """Return the batching options of a task or a class of tasks, checked."""
    return TaskOptions(**{name: getattr(task, name) for name in TASK_OPTION_NAMES})
