"""Options of tasks and workers, and the files and presets that set them."""

from .options import TASK_OPTION_NAMES, TaskOptions, WorkerOptions
