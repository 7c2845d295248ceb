"""The runner: the only thing that calls the model and knows the device."""

import functools
import gc
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...batchers import Batch, Job, Outcome
from ...batchers.forward import Collated, collate, run
from ...batchers.isolation import is_out_of_memory, run_isolated
from .staging import Sent, Staging
from .state import EngineState

logger = logging.getLogger(__name__)


class Runner:
    """Loads models onto a device, puts batches together and runs them there."""

    def __init__(self, state: EngineState) -> None:
        """Run the models of `state` on the device that its options name."""
        self._state = state
        self._models = state.models
        self._options = state.options
        self._clock = state.clock
        #: The device of each model, by task name.
        self._devices: dict[str, str] = {}
        self._staging: Staging | None = None

    def load(self) -> dict[str, str]:
        """Load every model; return the device of each, by task name.

        Raises what a model's `load` raises, because a worker that cannot serve must not consume.
        """
        for name, model in self._models.items():
            began = self._clock()
            device = self._devices[name] = model.ensure_loaded(self._options.device)
            logger.info("Task %s is loaded on %s (%.1f s).", name, device, self._clock() - began)
            if device.startswith("cuda") and self._staging is None:
                self._staging = Staging(device)
        return self._devices

    def collate(self, batch: Batch) -> Collated | Sent | None:
        """Put a batch together ahead of its run. None if that fails, because its run then finds the bad job."""
        try:
            with self._state.user_code(batch.jobs):
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
        model, device = self._models[batch.task], self._devices[batch.task]

        def forward(items: Sequence[Any]) -> list[Any]:
            # What was put together ahead serves the first try alone: the halves of a batch that fails are made anew.
            nonlocal collated
            together, collated = collated, None
            if isinstance(together, Sent):
                together = together.receive()
            with self._state.user_code(batch.jobs):
                return run(model, together or collate(model, items, batch.sizes), device)

        def free(jobs: Sequence[Job]) -> None:
            out_of_memory(jobs)
            logger.warning("Task %s: memory ran out with a batch of %d; its halves run.", batch.task, len(jobs))
            free_memory()

        return run_isolated(batch, forward, free, functools.partial(check_device, device))


def check_device(device: str) -> None:
    """Raise an error if a torch device does not even add two numbers: it is lost to this process then.

    No model's error says so, because its text may quote a caller. A device whose memory is full still works.
    """
    torch = sys.modules.get("torch")
    if torch is None or device == "cpu":
        return
    try:
        float(torch.zeros(1, device=device) + 1)  # waits for the result, and so for every error of the device
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise


def free_memory() -> None:
    """Give back what nothing uses any more: Python's cycles, and what torch keeps for later on a CUDA device."""
    gc.collect()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
