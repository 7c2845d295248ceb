"""What a calling service needs: the task's definition, bulk submit, results. Imports no torch."""

from .client import ENQUEUED_AT, BulkResult
from .task.batch_task import BatchTask
