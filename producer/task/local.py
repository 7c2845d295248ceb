"""Calls that run here and now, without an engine: called directly, eagerly, or in a worker that batches nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...batchers.forward import forward
from .. import private
from .signature import attempt


def run_call(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a batch of one call; return its result, or raise its error when `autoretry_for` asks for no other try."""

    def run(*args: Any, **kwargs: Any) -> Any:
        (answer,) = run_calls(task, [(args, kwargs)])
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return (_Retried(task, run).run if task.autoretry_for else run)(*args, **kwargs)


def run_calls(task: Any, calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
    """Run one batch; return a result for each call, an exception instance for each that failed."""
    device = task.ensure_loaded()
    items = task.prepare_many(calls)
    outputs = map_sound(lambda sound: forward(task, sound, device, task.preferred_batch_sizes), items)
    return [out if isinstance(out, BaseException) else attempt(task.postprocess, out) for out in outputs]


def map_sound(function: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
    """Return `items` with those that are no exceptions replaced by what `function` makes of them."""
    sound = [item for item in items if not isinstance(item, BaseException)]
    answers = iter(function(sound) if sound else [])
    return [item if isinstance(item, BaseException) else next(answers) for item in items]


class _Retried:
    """Stands in for a task while Celery wraps `run` for `autoretry_for`: here that is one call, in a task one batch."""

    _task: Any

    def __init__(self, task: Any, run: Callable[..., Any]) -> None:
        self.__dict__.update(_task=task, run=run)
        private.add_autoretry_behaviour(self)

    def __getattr__(self, name: str) -> Any:
        if name == private.ORIGINAL_RUN:  # Celery wraps no `run` of a task that has this
            raise AttributeError(name)
        return getattr(self._task, name)

    def __delattr__(self, name: str) -> None:
        delattr(self._task, name)
