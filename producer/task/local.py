"""Calls that run here and now, without an engine: called directly, eagerly, or in a worker that batches nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...batchers.errors import RetryRequested
from ...batchers.forward import forward
from .. import private
from .signature import attempt


def run_call(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a batch of one call; return its result, or raise its error when nothing asks for another try of it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        (answer,) = run_calls(task, [(args, kwargs)])
        if isinstance(answer, BaseException):
            raise answer
        return answer

    try:
        return (private.retried(task, run) if task.autoretry_for else run)(*args, **kwargs)
    except RetryRequested as asked:  # by `autoretry_for`, while Celery traces no call
        raise asked.failure() from None


def run_calls(task: Any, calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
    """Run one batch; return a result for each call, an exception instance for each that failed."""
    device = task.ensure_loaded()
    items = task.prepare_many(calls)
    try:
        outputs = map_sound(lambda sound: forward(task, sound, device, task.preferred_batch_sizes), items)
    except RetryRequested as asked:
        raise asked.failure() from None
    answers = [out if isinstance(out, BaseException) else attempt(task.postprocess, out) for out in outputs]
    return [answer.failure() if isinstance(answer, RetryRequested) else answer for answer in answers]


def map_sound(function: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
    """Return `items` with those that are no exceptions replaced by what `function` makes of them."""
    sound = [item for item in items if not isinstance(item, BaseException)]
    answers = iter(function(sound) if sound else [])
    return [item if isinstance(item, BaseException) else next(answers) for item in items]
