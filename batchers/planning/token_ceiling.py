"""The token ceiling: how large a batch may be, learned from those that ran out of memory."""

from collections.abc import Sequence

from ..job import Job

#: Batches at the ceiling that must fit before it is raised, at first and at most. The number doubles each time that it
#: was raised too high: what does not fit is not tried for ever, at the price of a failed batch each time.
_FIRST_PATIENCE, _LAST_PATIENCE = 16, 1024


class TokenCeiling:
    """What fits into memory, in tokens of a padded batch (jobs times the longest); in jobs where they have no length.

    Down at once, up slowly. One failure lowers it to what is known to fit, or at least to seven eighths and at most to
    a half of what failed: a failed batch is run again in halves. Many full batches raise it by a sixteenth; the planner
    takes the lower one of it and `max_batch_tokens`. Wire it so: `failed` where `is_out_of_memory(error)`, `succeeded`
    after every part that ran, both with `batch_tokens(jobs)`; and give it to the planner.
    """

    __slots__ = ("_fits", "_met", "_patience", "_raised", "limit")

    def __init__(self) -> None:
        #: Tokens that a batch may have; None: nothing has failed.
        self.limit: int | None = None
        self._fits = 0
        self._raised = False
        self._patience = _FIRST_PATIENCE
        self._met = 0

    def failed(self, tokens: int, count: int) -> None:
        """Lower the ceiling: `count` jobs with `tokens` together did not fit.

        A job that fails alone teaches nothing: it runs alone whatever the ceiling is, and others may still fit.
        """
        if count < 2:
            return
        if self._raised:
            self._patience = min(2 * self._patience, _LAST_PATIENCE)
            self._raised = False
        self._fits = max(1, min(max(self._fits, tokens // 2), tokens * 7 // 8))
        self._met = 0
        self.limit = self._fits if self.limit is None else min(self.limit, self._fits)

    def succeeded(self, tokens: int) -> None:
        """Take note that a batch of `tokens` fitted; raise the ceiling when enough have that came near it."""
        self._fits = max(self._fits, tokens)
        if self.limit is None or tokens < self.limit * 7 // 8:
            return
        self._met += 1
        if self._met >= self._patience:
            self._met = 0
            self._raised = True
            self.limit += -(-self.limit // 16)


def batch_tokens(jobs: Sequence[Job]) -> int:
    """Return what a batch of these jobs takes of a ceiling."""
    return len(jobs) * max((1 if job.length is None else job.length for job in jobs), default=0)
