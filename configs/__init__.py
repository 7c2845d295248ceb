"""Options of tasks and workers, and the files and presets that set them."""

from .configuration import (
    Configuration,
    ConfigurationError,
    did_you_mean,
    from_text,
    load_configuration,
    option_value,
    task_table,
)
from .options import TASK_OPTION_NAMES, TaskOptions, WorkerOptions

__all__ = [
    "TASK_OPTION_NAMES",
    "Configuration",
    "ConfigurationError",
    "TaskOptions",
    "WorkerOptions",
    "did_you_mean",
    "from_text",
    "load_configuration",
    "option_value",
    "task_table",
]
