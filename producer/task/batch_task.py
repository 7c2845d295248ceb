"""BatchTask: the definition of a task that both sides share, the callers and the workers."""

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, ClassVar, Self

from celery import Task

from ...batchers import Batcher, ListBatcher
from ...batchers.forward import forward
from ...configs import TASK_OPTION_NAMES, TaskOptions
from .. import private
from ..client import BulkResult, call_options, delay_many, publisher
from ..codec import serializer
from ..codec.json import as_lists
from .definition import (
    annotated_options,
    check_acknowledgement,
    check_budget,
    error_context,
    option_sources,
    read_definition,
)
from .device import resolve_device
from .local import SingleCall
from .signature import CallSignature, attempt, is_plain_function

#: Functions given as options of the decorator (`length=len`); they must not turn into methods.
_FUNCTION_OPTIONS = ("length", "preprocess", "preprocess_many", "postprocess")


class BatchTask(Task):
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

    abstract = True

    #: Items to a batch and back; by default the batch is the list of items.
    batcher: Batcher = ListBatcher()
    #: `length(item)` counts an item's tokens; None: the batcher's own `length`, if it has one.
    length: Any = None
    #: What typical calls pass: each one call's argument, or a tuple of its arguments where the task takes several.
    #: Before it takes work a worker runs batches of these: that allocates memory, and measures what batches cost. Where
    #: the batcher can crop, one long example does. Without any, it learns from the batches that callers wait for.
    examples: Sequence[Any] = ()
    #: The torch device name that the model was loaded on; None before that.
    device: str | None = None

    #: A job is acknowledged with its result, never before: a killed worker loses nothing.
    acks_late = True
    #: As in Celery: exceptions after which a job is sent again. The worker retries each job by itself, never a batch.
    autoretry_for: Sequence[type[BaseException]] = ()
    _signature: ClassVar[CallSignature]
    #: Whether `run` gets a list for each parameter of a call, and not the batch as it is.
    _run_gets_columns: ClassVar[bool]
    #: The batching options that `task_annotations` have set.
    _annotated: ClassVar[Set[str]] = frozenset()
    _load_lock: ClassVar[threading.RLock]
    _results_take_arrays: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the definition, once, where it is written.

        Raises:
            TypeError, ValueError: it cannot work; the message names the task and the reason.
        """
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        with error_context(cls):
            for name in _FUNCTION_OPTIONS:
                if is_plain_function(own.get(name), decorated=private.is_decorated(cls)):
                    setattr(cls, name, staticmethod(own[name]))
            cls._signature, cls._run_gets_columns = read_definition(cls, BatchTask)
            private.set_argument_check(cls, cls._signature.check)
            check_acknowledgement(cls)
            _options_of(cls)
        # A model's load may warm it up with run_batch().
        cls._load_lock = threading.RLock()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Check what `task_annotations` have set."""
        super().on_bound(app)
        cls._annotated = annotated_options(cls)
        with error_context(cls):
            check_acknowledgement(cls)
            _options_of(cls)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make a task whose `run` Celery leaves as it is."""
        task: Self = super().__new__(cls)
        setattr(task, private.ORIGINAL_RUN, None)
        return task

    # -- What a user writes ------------------------------------------------------------------------------------------

    def load(self, device: str) -> None:
        """Load the model onto `device` (a torch device name). Runs once, in the worker, before it takes work."""

    def preprocess(self, item: Any) -> Any:
        """Turn one call's arguments into one item for the batcher. Runs outside the batch, for each job alone."""
        return item

    #: `preprocess_many(items)`: the same for many at once, one item or exception instance for each; with several
    #: parameters each is a list. None: `preprocess` is called for each.
    preprocess_many: Any = None

    def predict(self, batch: Any) -> Any:
        """Run the model once on a whole batch, as the batcher made it; torch tensors are on the device."""
        if type(self).run is BatchTask.run:
            raise NotImplementedError(f"{type(self).__name__} must define predict(self, batch).")
        if not self._run_gets_columns:
            return self.run(batch)
        return self.run(*(self._signature.columns(batch) if isinstance(batch, list) else batch))

    def postprocess(self, output: Any) -> Any:
        """Turn one output into what the caller gets: by default lists for arrays, also within tuples, lists and dicts.

        They stay arrays if the app's `result_serializer` is "batchery" when the model is loaded.
        """
        return output if self._results_take_arrays else as_lists(output)

    def run(self, items: Any) -> Any:
        """Run one batch; for the decorator form this is the raw function."""
        return self.run_batch(items)

    # -- Calling -----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a batch of one here and now, without a broker, and return its result."""
        run = SingleCall(self, self._run_alone).run if self.autoretry_for else self._run_alone
        return run(*args, **kwargs)

    def _run_alone(self, *args: Any, **kwargs: Any) -> Any:
        device = self.ensure_loaded()
        (answer,) = self._run_prepared([self.prepare(args, kwargs)], device)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def run_batch(self, items: Iterable[Any]) -> list[Any]:
        """Run one batch here and now, without broker or threads: for tests.

        Each item is one call's argument, or a tuple of its arguments where the task takes several. Returns one result
        an item, in order; what a per-item hook raised, or the model put in a slot, stands there as an exception.
        """
        device = self.ensure_loaded()
        return self._run_prepared(self.prepare_many([(self._signature.as_args(item), {}) for item in items]), device)

    def delay_many(self, items: Iterable[Any], **options: Any) -> BulkResult:
        """Publish many calls in bulk; `options` are `apply_async`'s, the same for every call.

        Each item is one call's argument, or a tuple of its arguments where the task takes several. The results iterate
        in the items' order.
        """
        own = type(self).apply_async is not BatchTask.apply_async  # it may treat each call another way
        return delay_many(self, [self._signature.as_args(item) for item in items], one_by_one=own, **options)

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send one call, as Celery does; the message says when it was sent, so that `max_wait_ms` counts from here."""
        options = call_options(self.app, args, kwargs, options)
        with publisher(self.app, more, options) as added:
            return super().apply_async(args, kwargs, *more, **{**options, **added})

    # -- What the engine calls ---------------------------------------------------------------------------------------

    @property
    def options(self) -> TaskOptions:
        """The batching options, checked."""
        with error_context(self):
            return _options_of(self)

    @property
    def option_sources(self) -> dict[str, str]:
        """Where each batching option comes from: "default", "code" or "task_annotations"."""
        return option_sources(self, BatchTask)

    @property
    def runs_user_code_per_item(self) -> bool:
        """Whether preparing an item runs the user's code (a builtin such as `len` does not count)."""
        own = type(self).preprocess is not BatchTask.preprocess or self.preprocess_many is not None
        return own or (self.length is not None and not inspect.isbuiltin(self.length))

    @property
    def prepares_one_by_one(self) -> bool:
        """Whether each item is prepared by the user's `preprocess`, by itself."""
        return self.preprocess_many is None and type(self).preprocess is not BatchTask.preprocess

    @property
    def measures_items(self) -> bool:
        """Whether anything counts an item's tokens or tells its shape class."""
        return self.length is not None or hasattr(self.batcher, "length") or hasattr(self.batcher, "shape_class")

    def prepare(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Turn one call's arguments into its item.

        Raises:
            TypeError: the arguments do not fit the task's signature.
            Exception: whatever `preprocess` raises.
        """
        if self.preprocess_many is not None:
            (item,) = self._preprocess_columns([self._signature.item(args, kwargs)])
            if isinstance(item, BaseException):
                raise item
            return item
        if type(self).preprocess is BatchTask.preprocess:
            return self._signature.item(args, kwargs)
        return self.preprocess(*args, **kwargs)

    def prepare_many(self, calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
        """Turn many calls' arguments into items, an exception instance for each that failed."""
        if self.preprocess_many is None and type(self).preprocess is not BatchTask.preprocess:
            return [attempt(self.prepare, args, kwargs) for args, kwargs in calls]
        items = self._signature.items(calls)
        if self.preprocess_many is None:
            return items
        return _map_sound(self._preprocess_columns, items)

    @property
    def counts_as_batcher(self) -> bool:
        """Whether an item's length is what the batcher says it is."""
        return self.length is None

    def prepare_examples(self) -> list[Any]:
        """Return the items of `examples`, an exception instance for each that failed."""
        return self.prepare_many([(self._signature.as_args(example), {}) for example in self.examples])

    def item_length(self, item: Any) -> int | None:
        """Count an item's tokens; None where neither the task nor its batcher does."""
        count = self.length or getattr(self.batcher, "length", None)
        if count is None:
            return None
        length = int(count(item))
        if length < 0:
            raise ValueError(f"Task {self.name}: an item's length is {length}: it must be from 0 up.")
        return length

    def ensure_loaded(self, device: str = "auto") -> str:
        """Load the model unless it is loaded; return the name of its device."""
        with self._load_lock:
            if self.device is None:
                self.device = resolve_device(device)
                # Once: Celery takes its time to look up a setting.
                self._results_take_arrays = self.app.conf.result_serializer == serializer.NAME
                try:
                    self.load(self.device)
                    with error_context(self):
                        check_budget(self, self.max_batch_tokens)
                except BaseException:
                    self.device = None
                    raise
            return self.device

    def _preprocess_columns(self, items: list[Any]) -> list[Any]:
        answers: Any = attempt(lambda: list(self.preprocess_many(*self._signature.columns(items))))
        if isinstance(answers, BaseException) and len(items) > 1:
            return [answer for item in items for answer in self._preprocess_columns([item])]
        if isinstance(answers, BaseException) or len(answers) != len(items):
            return [_count_error(answers, items) for _ in items]
        return list(answers)

    def _run_prepared(self, items: list[Any], device: str) -> list[Any]:
        outputs = _map_sound(lambda sound: forward(self, sound, device, self.preferred_batch_sizes), items)
        return [out if isinstance(out, BaseException) else attempt(self.postprocess, out) for out in outputs]


for _name in TASK_OPTION_NAMES:
    setattr(BatchTask, _name, getattr(TaskOptions(), _name))


def _options_of(task: BatchTask | type[BatchTask]) -> TaskOptions:
    return TaskOptions(**{name: getattr(task, name) for name in TASK_OPTION_NAMES})


def _map_sound(function: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
    """Return `items` with those that are no exceptions replaced by what `function` makes of them."""
    sound = [item for item in items if not isinstance(item, BaseException)]
    answers = iter(function(sound) if sound else [])
    return [item if isinstance(item, BaseException) else next(answers) for item in items]


def _count_error(answers: Any, items: list[Any]) -> BaseException:
    if isinstance(answers, BaseException):
        return answers
    return ValueError(
        f"preprocess_many returned {len(answers)} items for {len(items)} calls; one for each is expected."
    )
