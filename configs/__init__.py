"""Options of tasks and workers, and the files and presets that set them."""

from .options import TASK_OPTION_NAMES as TASK_OPTION_NAMES
from .options import TaskOptions as TaskOptions
from .options import WorkerOptions as WorkerOptions
