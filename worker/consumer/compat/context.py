"""What the parts of the consumer share."""

from collections.abc import Mapping
from dataclasses import dataclass

from celery.worker.consumer import Consumer

from ....configs import WorkerOptions
from ....producer import BatchTask
from ...broker import Leases
from ...broker.retry import RedisRetry
from ...engine import EngineState
from .hub import HubCalls


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Made once, when the worker starts."""

    consumer: Consumer
    #: The batch tasks that this worker serves, by name.
    tasks: Mapping[str, BatchTask]
    options: WorkerOptions
    leases: Leases
    #: Runs calls on the thread of Celery's event loop.
    hub: HubCalls
    retry: RedisRetry
    #: Takes jobs that arrive in another way than by a claim.
    intake: EngineState
