"""The token ceiling: how large a batch may be, learned from the batches that ran out of memory."""

from collections.abc import Sequence

from ..job import Job

#: Batches near the ceiling that must fit before it is raised, at first and at most. The number doubles each time that
#: the ceiling was raised too high, because every attempt that does not fit costs a failed batch.
_FIRST_PATIENCE, _LAST_PATIENCE = 16, 1024


class TokenCeiling:
    """The number of tokens that fit into memory in one padded batch (jobs times the longest).

    If jobs have no length, the ceiling counts jobs. One failure lowers it at once to the largest batch known to fit,
    but to between a half and seven eighths of the failed batch, because a failed batch is run again in halves. Many
    batches near it, or that it kept from being larger, raise it by a sixteenth. Call `failed` where
    `is_out_of_memory(error)`, and `succeeded` after every part that ran, both with `batch_tokens(jobs)`. The planner
    applies the lower of the ceiling and `max_batch_tokens`.
    """

    def __init__(self) -> None:
        #: Tokens that a batch may have; None before the first failure.
        self.limit: int | None = None
        self._fits = 0
        self._raised = False
        self._patience = _FIRST_PATIENCE
        self._near = 0

    def failed(self, tokens: int, count: int) -> None:
        """Lower the ceiling because `count` jobs with `tokens` together did not fit.

        A single job changes nothing, because it runs alone whatever the ceiling is, and others may still fit.
        """
        if count < 2:
            return
        if self._raised:
            self._patience = min(2 * self._patience, _LAST_PATIENCE)
            self._raised = False
        self._fits = max(1, min(max(self._fits, tokens // 2), tokens * 7 // 8))
        self._near = 0
        self.limit = self._fits if self.limit is None else min(self.limit, self._fits)

    def succeeded(self, tokens: int, *, held_down: bool = False) -> None:
        """Record that a batch of `tokens` fitted, and raise the ceiling after enough batches near it.

        A batch that the ceiling has `held_down` counts as near it however small it is: where two jobs do not fit below
        the ceiling, every batch is a single job far below it.
        """
        self._fits = max(self._fits, tokens)
        if self.limit is None or (tokens < self.limit * 7 // 8 and not held_down):
            return
        self._near += 1
        if self._near >= self._patience:
            self._near = 0
            self._raised = True
            self.limit += -(-self.limit // 16)


def batch_tokens(jobs: Sequence[Job]) -> int:
    """Return what a batch of these jobs counts against the ceiling."""
    return len(jobs) * max((1 if job.length is None else job.length for job in jobs), default=0)
