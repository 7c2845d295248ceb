"""A batch task as the engine sees it: the `Model` of worker/engine."""

import inspect
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...configs import TASK_OPTION_NAMES, TaskOptions
from ..codec import serializer
from .definition import check_budget, error_context, read_options
from .device import resolve_device
from .hooks import TaskHooks
from .local import map_sound
from .signature import attempt

#: An item's length at most: its square, and the tokens of the largest batch, are still numbers of numpy's int64.
_LONGEST = 2**31 - 1


class TaskModel(TaskHooks):
    """Loads a task's model and makes items of calls; user code is reached through the hooks alone."""

    #: Reentrant, because a model's `load` may warm it up with `run_batch`.
    _load_lock: ClassVar[threading.RLock]

    @property
    def options(self) -> TaskOptions:
        """The batching options, checked."""
        with error_context(self):
            return read_options(self)

    @property
    def option_sources(self) -> dict[str, str]:
        """Where each batching option comes from: "default", "code" or "task_annotations"."""
        sources = dict.fromkeys(TASK_OPTION_NAMES, "default")
        classes = type(self).__mro__
        for owner in reversed(classes[: classes.index(TaskHooks)]):
            for name in vars(owner).keys() & sources:
                # Celery writes annotations into the class: an inherited one is written in the class it was meant for.
                sources[name] = "task_annotations" if name in vars(owner).get("_annotated", ()) else "code"
        return sources | dict.fromkeys(vars(self).keys() & sources, "code")

    @property
    def prepares_one_by_one(self) -> bool:
        """Whether each item is prepared by the user's `preprocess`, by itself."""
        return self.preprocess_many is None and type(self).preprocess is not TaskHooks.preprocess

    @property
    def runs_user_code_per_item(self) -> bool:
        """Whether preparing an item runs the user's code (a builtin such as `len` does not count)."""
        if self.prepares_one_by_one or self.preprocess_many is not None:
            return True
        counts = [self.length] if self.length is not None else [getattr(self.batcher, "length", None)]
        counts.append(getattr(self.batcher, "shape_class", None))
        return not all(count is None or inspect.isbuiltin(count) or _is_ours(count) for count in counts)

    @property
    def postprocesses(self) -> bool:
        """Whether each output is postprocessed by the user's `postprocess`."""
        return type(self).postprocess is not TaskHooks.postprocess

    @property
    def measures_items(self) -> bool:
        """Whether anything counts an item's tokens or tells its shape class."""
        return self.length is not None or hasattr(self.batcher, "length") or hasattr(self.batcher, "shape_class")

    @property
    def counts_as_batcher(self) -> bool:
        """Whether an item's length is what the batcher says it is."""
        return self.length is None

    def ensure_loaded(self, device: str = "auto") -> str:
        """Load the model unless it is loaded; return the name of its device."""
        with self._load_lock:
            if self.device is None:
                self.device = resolve_device(device)
                # Read once, because Celery takes its time to look up a setting.
                self._results_take_arrays = self.app.conf.result_serializer == serializer.NAME
                try:
                    self.load(self.device)
                    with error_context(self):
                        check_budget(self, self.max_batch_tokens)
                except BaseException:
                    self.device = None
                    raise
            return self.device

    def prepare_many(self, calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
        """Turn many calls' arguments into items, an exception instance for each that failed."""
        if self.prepares_one_by_one:
            return [attempt(self._preprocess, args, kwargs) for args, kwargs in calls]
        items = self._signature.items(calls)
        return items if self.preprocess_many is None else map_sound(self._preprocess_columns, items)

    def prepare_examples(self) -> list[Any]:
        """Return the items of `examples`, an exception instance for each that failed."""
        return self.prepare_many([(self._signature.as_args(example), {}) for example in self.examples])

    def item_length(self, item: Any) -> int | None:
        """Count an item's tokens; None where neither the task nor its batcher does."""
        count = self.length or getattr(self.batcher, "length", None)
        if count is None:
            return None
        counted = count(item)
        try:
            length = -1 if isinstance(counted, bool) else int(counted)
        except (TypeError, ValueError, OverflowError):  # It is no number, or not a finite one.
            length = -1
        if not 0 <= length <= _LONGEST:
            told = f"{counted!r:.40}" if abs(length) < 2**64 else "a number of more than 64 bits"
            raise ValueError(f"Task {self.name}: an item's length is {told}: it must be from 0 to {_LONGEST:,}.")
        return length

    def _preprocess(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self.preprocess(*args, **kwargs)

    def _preprocess_columns(self, items: list[Any]) -> list[Any]:
        prepared = attempt(lambda: list(self.preprocess_many(*self._signature.columns(items))))
        if isinstance(prepared, list):
            if len(prepared) == len(items):
                return prepared
            reason = f"preprocess_many returned {len(prepared)} items for {len(items)} calls; one for each is expected."
            return [ValueError(reason) for _ in items]
        return [prepared] if len(items) == 1 else [self._preprocess_columns([item])[0] for item in items]


def _is_ours(function: Any) -> bool:
    """Whether a method is that of one of Batchery's own batchers."""
    return str(getattr(function, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]
