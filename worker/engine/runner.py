"""The runner: the only thing that calls the model and knows the device."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...batchers import Batch, Job, Outcome
from ...batchers.forward import Collated, collate, run
from ...batchers.isolation import run_isolated
from .memory import free_memory
from .model import Model
from .staging import Sent, Staging

logger = logging.getLogger(__name__)


class Runner:
    """Loads models onto a device, and runs batches there."""

    def __init__(self, models: Mapping[str, Model], device: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Run `models`, by task name, on `device`: "auto" or a torch device name."""
        self._models = models
        self._device = device
        self._clock = clock
        self._staging: Staging | None = None

    def load(self) -> None:
        """Load every model. Raises what a model's `load` raises: a worker that cannot serve must not consume."""
        for model in self._models.values():
            began = self._clock()
            device = model.ensure_loaded(self._device)
            logger.info("Task %s is loaded on %s (%.1f s).", model.name, device, self._clock() - began)
            if device.startswith("cuda") and self._staging is None:
                self._staging = Staging(device)

    def collate(self, batch: Batch) -> Collated | Sent | None:
        """Put a batch together ahead of its run; None where it cannot be: running it will tell whose fault it is."""
        try:
            collated = collate(self._models[batch.task], [job.item for job in batch.jobs], batch.sizes)
            return self._staging.send(collated) if self._staging else collated
        except BaseException:  # a batcher is the user's code
            logger.debug("A batch of %s could not be put together ahead of its run.", batch.task, exc_info=True)
            return None

    def run(
        self, batch: Batch, collated: Collated | Sent | None, out_of_memory: Callable[[Sequence[Job]], None]
    ) -> Iterator[list[Outcome]]:
        """Run a batch; yield the outcomes of each part as soon as it is done: see `run_isolated`.

        `out_of_memory(jobs)` is called for each part that memory was too small for.
        """
        model = self._models[batch.task]
        device = model.ensure_loaded(self._device)
        ahead = [collated] if collated is not None else []

        def forward(items: Sequence[Any]) -> list[Any]:
            # What was put together ahead serves the first try alone: the halves of a batch that fails are made anew.
            together = ahead.pop() if ahead else collate(model, items, batch.sizes)
            return run(model, together.receive() if isinstance(together, Sent) else together, device)

        def free(jobs: Sequence[Job]) -> None:
            out_of_memory(jobs)
            logger.warning("Task %s: memory ran out with a batch of %d; its halves run.", batch.task, len(jobs))
            free_memory()

        return run_isolated(batch, forward, free)
