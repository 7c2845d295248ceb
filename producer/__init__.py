"""What a calling service needs: the task's definition, bulk submit, results. Imports no torch."""

from .submit import ENQUEUED_AT, BulkResult
from .task import BatchTask

__all__ = ["ENQUEUED_AT", "BatchTask", "BulkResult"]
