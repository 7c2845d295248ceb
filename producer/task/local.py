"""One call by itself, where no engine is: called directly, eagerly, or in a worker that takes tasks one by one."""

from collections.abc import Callable
from typing import Any

from .. import private


class SingleCall:
    """Stands in for a task while Celery puts its `autoretry_for` around `run`, which here is one call and no batch."""

    _task: Any

    def __init__(self, task: Any, run: Callable[..., Any]) -> None:
        """Retry `run(*args, **kwargs)` as `task`'s options say."""
        self.__dict__.update(_task=task, run=run)
        private.add_autoretry_behaviour(self)

    def __getattr__(self, name: str) -> Any:
        if name == private.ORIGINAL_RUN:  # where it is, Celery puts nothing around `run`
            raise AttributeError(name)
        return getattr(self._task, name)

    def __delattr__(self, name: str) -> None:
        delattr(self._task, name)
