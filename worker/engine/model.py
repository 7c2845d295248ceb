"""What the engine asks of a task."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...batchers import Batcher
from ...configs import TaskOptions


class Model(Protocol):
    """A task as the engine sees it: `producer.BatchTask` is one."""

    @property
    def name(self) -> str:
        """The task's name, by which jobs refer to it."""

    @property
    def options(self) -> TaskOptions:
        """How its jobs are put together."""

    @property
    def batcher(self) -> Batcher:
        """Items to a batch and back."""

    @property
    def runs_user_code_per_item(self) -> bool:
        """Whether `prepare_many` and `item_length` run user code, which belongs on the preprocess threads."""

    @property
    def prepares_one_by_one(self) -> bool:
        """Whether each item is prepared by the user's code, by itself."""

    @property
    def measures_items(self) -> bool:
        """Whether items have a length or a shape class."""

    @property
    def counts_as_batcher(self) -> bool:
        """Whether the batcher, and not the task, counts an item's length."""

    @property
    def postprocesses(self) -> bool:
        """Whether each output is postprocessed by the user's code."""

    def prepare_examples(self) -> list[Any]:
        """Return items of typical calls, to measure batches of; an exception instance for each that failed."""

    def ensure_loaded(self, device: str = "auto") -> str:
        """Load the model unless it is loaded; return the name of its device."""

    def prepare_many(self, calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
        """Turn calls' arguments into items, an exception instance for each that failed."""

    def item_length(self, item: Any) -> int | None:
        """Count an item's tokens, if anything does."""

    def predict(self, batch: Any) -> Any:
        """Run the model once on a whole batch."""

    def postprocess(self, output: Any) -> Any:
        """Turn one output into what the caller gets."""
