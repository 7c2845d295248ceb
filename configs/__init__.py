"""Settings as frozen dataclasses, and the files and presets that set them."""

from .configuration import (
    Configuration,
    ConfigurationError,
    Setting,
    from_text,
    load_configuration,
    nearest,
    option_value,
    task_table,
)
from .device import resolve_device
from .options import TASK_OPTION_NAMES, OptionError, TaskOptions, WorkerOptions

__all__ = [
    "TASK_OPTION_NAMES",
    "Configuration",
    "ConfigurationError",
    "OptionError",
    "Setting",
    "TaskOptions",
    "WorkerOptions",
    "from_text",
    "load_configuration",
    "nearest",
    "option_value",
    "resolve_device",
    "task_table",
]
