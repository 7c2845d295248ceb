"""Pure decisions: jobs, batches, batchers, the planner, isolation, errors. No I/O, threads or clock."""

from .batcher import Batcher
from .bucket import BucketBatcher
from .concat import ConcatBatcher
from .errors import BatcheryError, BatchFailed, JobRejected, OutputMismatch, RetryRequested, WorkerDied, without_text
from .job import Batch, Job, JobState, Outcome
from .list import ListBatcher
from .pad import PadBatcher
from .planning.cost import CostFunction, CostModel
from .planning.planner import GreedyPlanner, Planner
from .planning.token_ceiling import TokenCeiling
from .stack import StackBatcher
