"""Settings as frozen dataclasses."""

from .device import resolve_device
from .options import TASK_OPTION_NAMES, TaskOptions, WorkerOptions

__all__ = ["TASK_OPTION_NAMES", "TaskOptions", "WorkerOptions", "resolve_device"]
