"""The last step: postprocess outcomes and let the front settle them."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping

from ...batchers import Outcome
from .front import Front
from .model import Model
from .prepare import postprocess

logger = logging.getLogger(__name__)

#: Seconds that the last settling may have taken for the next one to be done by the thread that ran the batch.
_QUICK_S = 0.002

#: Outcomes after which no more lots are settled in the same step.
_TOGETHER = 500


class Settler:
    """Settles outcomes in order, on a thread of its own: together what came while it was at the last ones.

    Where no job waits for the device, the thread that ran the batch settles it by itself: waking another thread for it
    costs a lone job a twentieth of its latency.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        front: Front,
        settled: Callable[[list[Outcome]], None],
        clock: Callable[[], float],
    ) -> None:
        """Settle through `front`; call `settled(outcomes)` after each lot."""
        self._models = models
        self._front = front
        self._settled = settled
        self._clock = clock
        self._lots: queue.SimpleQueue[list[Outcome] | None] = queue.SimpleQueue()
        self._busy = threading.Lock()
        self._last_s = float("inf")

    def put(self, outcomes: list[Outcome]) -> None:
        """Settle them soon, on the settle thread. Any thread."""
        self._lots.put(outcomes)

    def settle_soonest(self, outcomes: list[Outcome]) -> None:
        """Settle them here and now if that is quick and no other lot comes first, else as `put` does."""
        if self._last_s < _QUICK_S:
            self.settle_here(outcomes)
        else:
            self.put(outcomes)

    def settle_here(self, outcomes: list[Outcome]) -> None:
        """Settle them here and now if no other lot comes first, else as `put` does."""
        if self._lots.empty() and self._busy.acquire(blocking=False):
            try:
                self._settle(outcomes)
            finally:
                self._busy.release()
        else:
            self.put(outcomes)

    def close(self) -> None:
        """End `run`, once all is settled that was put before. Any thread."""
        self._lots.put(None)

    def run(self) -> None:
        """Settle what has come meanwhile, as often as something has, until `close`."""
        while (first := self._lots.get()) is not None:
            lots, count = [first], len(first)
            while count < _TOGETHER and not self._lots.empty():  # nobody else takes from it
                if (more := self._lots.get()) is None:
                    self.close()  # after these
                    break
                lots.append(more)
                count += len(more)
            with self._busy:
                self._settle(*lots)

    def _settle(self, *lots: list[Outcome]) -> None:
        began = self._clock()
        outcomes = [outcome for lot in lots for outcome in lot] if len(lots) > 1 else lots[0]
        for outcome in outcomes:
            if outcome.error is None:
                postprocess(self._models[outcome.job.task], outcome)
        try:
            self._front.settle(outcomes)
        except Exception:
            logger.exception("%d outcomes could not be stored; their jobs run again.", len(outcomes))
        self._last_s = self._clock() - began
        for lot in lots:
            self._settled(lot)
