"""Pure decisions: jobs, batches, batchers, the planner, isolation, errors. No I/O, threads or clock."""

from .batcher import Batcher
from .bucket import BucketBatcher
from .ceiling import TokenCeiling
from .concat import ConcatBatcher
from .cost import CostFunction, CostModel
from .errors import BatcheryError, BatchFailed, JobRejected, OutputMismatch
from .job import Batch, Job, Outcome
from .listed import ListBatcher
from .pad import PadBatcher
from .planner import GreedyPlanner, Planner
from .stack import StackBatcher

__all__ = [
    "Batch",
    "BatchFailed",
    "Batcher",
    "BatcheryError",
    "BucketBatcher",
    "ConcatBatcher",
    "CostFunction",
    "CostModel",
    "GreedyPlanner",
    "Job",
    "JobRejected",
    "ListBatcher",
    "Outcome",
    "OutputMismatch",
    "PadBatcher",
    "Planner",
    "StackBatcher",
    "TokenCeiling",
]
