"""BatchTask: the definition of a task that both sides share, the callers and the workers."""

import threading
from collections.abc import Iterable, Set
from typing import Any, ClassVar, Self

from ...batchers.errors import RetryRequested
from ...configs import TASK_OPTION_NAMES
from .. import private
from ..client import BulkResult, delay_many, publish_options
from .definition import check_options, check_options_of_celery, error_context, read_definition
from .local import run_call, run_calls
from .model import TaskModel
from .signature import is_plain_function


class BatchTask(TaskModel):
    """A Celery task that runs in batches: one call in, one result out, one forward pass for many.

    As a decorator base, the function takes lists and returns a list of the same length and order:

        @app.task(base=BatchTask, max_batch_size=64, length=len)
        def shout(texts):
            return [text.upper() for text in texts]

    As a class, override `predict`, and `load`, `preprocess`, `postprocess` as needed; `preprocess`'s signature is the
    task's. An exception instance in an output slot is that job's failure alone; what a per-item hook raises is that
    job's failure too.

    Every option of configs.TaskOptions is an attribute too, with its default there: `max_batch_size`, `max_wait_ms`...
    """

    #: The batching options that `task_annotations` have set.
    _annotated: ClassVar[Set[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the definition, once, where it is written.

        Raises:
            TypeError, ValueError: it cannot work; the message names the task and the reason.
        """
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        with error_context(cls):
            # Functions given as options of the decorator (`length=len`) must not turn into methods.
            for name in ("length", "preprocess", "preprocess_many", "postprocess"):
                if is_plain_function(own.get(name), decorated=bool(own.get(private.DECORATED))):
                    setattr(cls, name, staticmethod(own[name]))
            cls._signature, cls._run_gets_columns = read_definition(cls)
            setattr(cls, private.ARGUMENT_CHECK, staticmethod(cls._signature.check))
            check_options_of_celery(cls)
            check_options(cls)
        cls._load_lock = threading.RLock()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Check what `task_annotations` have set."""
        super().on_bound(app)
        cls._annotated = {name for options in private.annotations(cls) for name in options} & {*TASK_OPTION_NAMES}
        with error_context(cls):
            check_options(cls)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make a task whose `run` Celery leaves as it is: to retry it would retry a whole batch."""
        task: Self = super().__new__(cls)
        setattr(task, private.ORIGINAL_RUN, None)
        return task

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a batch of one here and now, without a broker, and return its result."""
        return run_call(self, args, kwargs)

    def run_batch(self, items: Iterable[Any]) -> list[Any]:
        """Run one batch here and now, without broker or threads: for tests.

        Each item is one call's argument, or a tuple of its arguments where the task takes several. Returns one result
        an item, in order; what a per-item hook raised, or the model put in a slot, stands there as an exception.
        """
        return run_calls(self, [(self._signature.as_args(item), {}) for item in items])

    def retry(
        self, args: Any = None, kwargs: Any = None, exc: Any = None, throw: bool = True, *more: Any, **options: Any
    ) -> Any:
        """Ask for another try of one call, as in Celery; the parameters are those of Celery's `Task.retry`.

        In `preprocess` and `postprocess` that is the call which the hook works on. In `predict` put
        `self.retry(throw=False)` in a job's output slot. If `predict` raises, the batch runs again in halves, as after
        any error, and each job that still raises alone is retried.
        """
        if self.request.called_directly:
            options |= zip(("eta", "countdown", "max_retries"), more, strict=False)
            asked = RetryRequested({"args": args, "kwargs": kwargs, "exc": exc, **options})
            if throw:
                raise asked
            return asked
        args, kwargs = self._signature.merge(self.request.args, self.request.kwargs, args, kwargs)
        return super().retry(args, kwargs, exc, throw, *more, **options)

    def delay_many(self, items: Iterable[Any], **options: Any) -> BulkResult:
        """Publish many calls in bulk; `options` are `apply_async`'s, the same for every call.

        Each item is one call's argument, or a tuple of its arguments where the task takes several. The results iterate
        in the items' order.
        """
        calls = [self._signature.as_args(item) for item in items]
        for args in calls:
            self._signature.check(*args)
        alike = type(self).apply_async is BatchTask.apply_async  # a user's own may send each call another way
        return delay_many(self, calls, alike=alike, **options)

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send one call, as Celery does; the message says when it was sent, so that `max_wait_ms` counts from here."""
        with publish_options(self.app, args, kwargs, more, options) as ours:
            return super().apply_async(args, kwargs, *more, **ours)
