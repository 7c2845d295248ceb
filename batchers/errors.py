"""Errors of Batchery. The class tells whose fault it is: the caller's (`JobRejected`) or ours (`BatchFailed`)."""

import traceback
from collections.abc import Mapping
from typing import Any


class BatcheryError(Exception):
    """The root of all errors that Batchery itself raises."""


class JobRejected(BatcheryError):
    """This call cannot be served, because its input is not acceptable or there is no room for it."""


class BatchFailed(BatcheryError):
    """The batch failed, and no single job is known to be the cause."""


class WorkerDied(BatchFailed):
    """So many workers died while they ran this job that it does not run any more."""


class OutputMismatch(BatchFailed):
    """The number of outputs that the model returned differs from the number of items that it got."""


class RetryRequested(BatcheryError):
    """A hook asked for another try of its jobs, where it has no single job's request: in `predict`, for example.

    A worker retries each job by itself. Where nothing retries, the job fails with `failure()`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Keep the `options` of Celery's `Task.retry`."""
        super().__init__("The task asked for another try.")
        self.options = options
        exc = options.get("exc")
        self._traceback = exc.__traceback__ if isinstance(exc, BaseException) else None

    def failure(self) -> Exception:
        """Return the error of a job that is not retried."""
        exc = self.options.get("exc")
        if isinstance(exc, Exception):
            return exc.with_traceback(self._traceback)  # without the frames of other jobs that failed with it
        return BatchFailed("The task asked for another try of this call, but only a Celery worker retries calls.")


def without_text(error: BaseException) -> str:
    """Return an error for a log: its class, and where it was raised, but not its text, which may quote a caller."""
    kind = type(error)
    return f"{kind.__module__}.{kind.__qualname__}, raised at\n{''.join(traceback.format_tb(error.__traceback__))}"
