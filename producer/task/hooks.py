"""What a user writes of a batch task: its options and its hooks."""

from collections.abc import Sequence
from typing import Any, ClassVar

from celery import Task

from ...batchers import Batcher, ListBatcher
from ...configs import TASK_OPTION_NAMES, TaskOptions
from ..codec.json import as_lists
from .signature import CallSignature


class TaskHooks(Task):
    """The options and hooks of `BatchTask`, with their defaults."""

    #: Items to a batch and back; by default the batch is the list of items.
    batcher: Batcher = ListBatcher()
    #: `length(item)` counts an item's tokens; None: the batcher's own `length`, if it has one.
    length: Any = None
    #: What typical calls pass: each one call's argument, or a tuple of its arguments where the task takes several.
    #: Before it takes work a worker runs batches of these, which allocates memory and measures what batches cost. One
    #: long example is enough where the batcher can crop. Without examples, the worker learns from its callers' batches.
    examples: Sequence[Any] = ()
    #: The torch device name that the model was loaded on; None before that.
    device: str | None = None

    #: A job is acknowledged with its result, never before, so that a killed worker loses nothing.
    acks_late = True
    #: As in Celery: exceptions after which a job is sent again. The worker retries each job by itself, never a batch.
    autoretry_for: Sequence[type[BaseException]] = ()

    _signature: ClassVar[CallSignature]
    #: Whether `run` gets a list for each parameter of a call, instead of the batch as it is.
    _run_gets_columns: ClassVar[bool]
    _results_take_arrays = False

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
        if type(self).run is TaskHooks.run:
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


for _name in TASK_OPTION_NAMES:
    setattr(TaskHooks, _name, getattr(TaskOptions(), _name))
