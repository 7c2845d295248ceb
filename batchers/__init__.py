"""Pure decisions: jobs, batches, batchers, the planner, isolation, errors. No I/O, threads or clock."""

from .batcher import Batcher as Batcher
from .bucket import BucketBatcher as BucketBatcher
from .concat import ConcatBatcher as ConcatBatcher
from .errors import BatcheryError as BatcheryError
from .errors import BatchFailed as BatchFailed
from .errors import JobRejected as JobRejected
from .errors import OutputMismatch as OutputMismatch
from .errors import WorkerDied as WorkerDied
from .job import Batch as Batch
from .job import Job as Job
from .job import JobState as JobState
from .job import Outcome as Outcome
from .list import ListBatcher as ListBatcher
from .pad import PadBatcher as PadBatcher
from .planning.cost import CostFunction as CostFunction
from .planning.cost import CostModel as CostModel
from .planning.planner import GreedyPlanner as GreedyPlanner
from .planning.planner import Planner as Planner
from .planning.token_ceiling import TokenCeiling as TokenCeiling
from .stack import StackBatcher as StackBatcher
