"""Settings as frozen dataclasses, and the files and presets that set them."""

from .configuration import (
    Configuration,
    ConfigurationError,
    Setting,
    did_you_mean,
    from_text,
    load_configuration,
    option_value,
    task_table,
)
from .options import TASK_OPTION_NAMES, OptionError, TaskOptions, WorkerOptions

__all__ = [
    "TASK_OPTION_NAMES",
    "Configuration",
    "ConfigurationError",
    "OptionError",
    "Setting",
    "TaskOptions",
    "WorkerOptions",
    "did_you_mean",
    "from_text",
    "load_configuration",
    "option_value",
    "task_table",
]
