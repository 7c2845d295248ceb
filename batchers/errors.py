"""Errors of Batchery. The class tells whose fault it is: the caller's (`JobRejected`) or ours (`BatchFailed`)."""


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
