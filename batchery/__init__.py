"""Batchery turns single Celery calls into GPU batches."""

from importlib.metadata import version

from .batchers import (
    Batcher,
    BatcheryError,
    BatchFailed,
    BucketBatcher,
    ConcatBatcher,
    JobRejected,
    ListBatcher,
    OutputMismatch,
    PadBatcher,
    StackBatcher,
)
from .configs import WorkerOptions
from .producer import BatchTask, BulkResult
from .worker import Host, setup

__version__ = version("batchery")

__all__ = [
    "BatchFailed",
    "BatchTask",
    "Batcher",
    "BatcheryError",
    "BucketBatcher",
    "BulkResult",
    "ConcatBatcher",
    "Host",
    "JobRejected",
    "ListBatcher",
    "OutputMismatch",
    "PadBatcher",
    "StackBatcher",
    "WorkerOptions",
    "__version__",
    "setup",
]
