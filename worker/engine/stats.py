"""What became of a task's batches, and why they were not larger."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ...batchers import Batch

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Stats:
    """What an engine has done since it started; times are seconds, summed over jobs or over batches as it says."""

    batches: int = 0
    jobs: int = 0
    failed: int = 0
    #: Times that a batch, or a part of one, was too large for the memory.
    out_of_memory: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    #: Batches by what kept them from being larger: see `Batch.closed_by`.
    closed_by: Counter[str] = field(default_factory=Counter)
    #: Over jobs: from enqueue to the batch's start, without `preprocess_s`.
    queue_s: float = 0.0
    #: Over jobs: from the claim until it could be chosen.
    preprocess_s: float = 0.0
    #: Over batches: from the start to the last output.
    run_s: float = 0.0
    #: Over batches: from the last output until all was stored and acknowledged.
    settle_s: float = 0.0

    @property
    def mean_batch_size(self) -> float:
        """Jobs a batch."""
        return self.jobs / self.batches if self.batches else 0.0

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that were padding, from 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    def add(self, batch: Batch, settled_at: float) -> None:
        """Count a batch that ran and is settled."""
        self.batches += 1
        self.jobs += len(batch.jobs)
        self.tokens += batch.tokens
        self.padded_tokens += batch.padded_tokens
        self.closed_by[batch.closed_by] += 1
        self.queue_s += batch.queue_s
        self.preprocess_s += batch.preprocess_s
        self.run_s += batch.run_s
        self.settle_s += settled_at - batch.finished_at

    def merge(self, other: "Stats") -> "Stats":
        """Return the sum of two."""
        return Stats(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def summary(self) -> dict[str, Any]:
        """Return all there is to know, times as means in milliseconds."""
        return {
            "batches": self.batches,
            "jobs": self.jobs,
            "failed": self.failed,
            "out_of_memory": self.out_of_memory,
            "mean_batch_size": round(self.mean_batch_size, 2),
            "padding_share": round(self.padding_share, 4),
            "closed_by": dict(self.closed_by.most_common()),
            "queue_ms": _mean_ms(self.queue_s, self.jobs),
            "preprocess_ms": _mean_ms(self.preprocess_s, self.jobs),
            "run_ms": _mean_ms(self.run_s, self.batches),
            "settle_ms": _mean_ms(self.settle_s, self.batches),
        }


@dataclass(slots=True)
class DeviceTime:
    """How long the device ran batches, and how long it idled between two of them although work was there."""

    #: Seconds.
    ran_s: float = 0.0
    idled_s: float = 0.0
    #: Since when the device has idled although work is there; None: it runs, or there is no work.
    _idle_since: float | None = None

    def started(self, now: float) -> None:
        """Note that a batch starts."""
        if self._idle_since is not None:
            self.idled_s += now - self._idle_since
            self._idle_since = None

    def finished(self, batch: Batch, *, work_waits: bool) -> None:
        """Note that a batch is through."""
        self.ran_s += batch.run_s
        if work_waits:
            self._idle_since = batch.finished_at

    @property
    def idle_share(self) -> float:
        """Share of the device's time that it idled although work was there, from 0 to 1."""
        return self.idled_s / (self.ran_s + self.idled_s) if self.idled_s else 0.0


def _mean_ms(seconds: float, count: int) -> float:
    return round(1000 * seconds / count, 3) if count else 0.0


def log_batch(batch: Batch, settled_at: float) -> None:
    """Say at level INFO what one batch was like, and where its time went."""
    if not logger.isEnabledFor(logging.INFO):  # the figures are sums over all of its jobs
        return
    size = len(batch.jobs)
    logger.info(
        "Task %s: batch %d of %d (closed by: %s), padding %.0f %%, queue %.1f ms, preprocess %.1f ms, run %.1f ms, "
        "settle %.1f ms.",
        batch.task,
        batch.number,
        size,
        batch.closed_by,
        100 * batch.padding_share,
        1000 * batch.queue_s / size,
        1000 * batch.preprocess_s / size,
        1000 * batch.run_s,
        1000 * (settled_at - batch.finished_at),
    )
