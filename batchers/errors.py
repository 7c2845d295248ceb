"""Errors of Batchery. The class says whose fault it is: the caller's (`JobRejected`) or ours (`BatchFailed`)."""


class BatcheryError(Exception):
    """The root of every error that Batchery raises by itself."""


class JobRejected(BatcheryError):
    """This call cannot be served: its input is not acceptable, or there is no room for it."""


class BatchFailed(BatcheryError):
    """The batch could not be run, through no fault that is known of any one job."""


class OutputMismatch(BatchFailed):
    """The model returned another number of outputs than it was given items."""
