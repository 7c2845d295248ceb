"""Options of a task and of a worker. A wrong value is refused with what is allowed.

Upper bounds refuse a typo before it ends a worker: one claim may take a whole batch, and the Redis server does nothing
else meanwhile; Python's locks overflow at a timeout of 292 years, and a million seconds are eleven days.
"""

from collections.abc import Sequence, Set
from typing import Annotated, Any

from msgspec import Meta, Struct, ValidationError, convert
from msgspec.structs import fields, force_setattr

_Count = Annotated[int, Meta(ge=1)]
_Text = Annotated[str, Meta(min_length=1)]
_Tokens = Annotated[int, Meta(ge=1, le=10**12)]
_Limit = Annotated[
    _Tokens | None, Meta(description='a whole number from 1 to 1,000,000,000,000, or None ("none" in a file)')
]
_Sizes = Annotated[Sequence[_Count], Meta(description="a list of ascending whole numbers from 1 up")]
_Names = Annotated[Sequence[_Text] | None, Meta(description="a list of tasks' names; without it all are served")]
_Bytes = Annotated[int, Meta(ge=1, le=10**12, description="a whole number of bytes from 1 to 1,000,000,000,000")]
_TimeLimit = Annotated[float, Meta(gt=0, le=1e6, description="a number of seconds above 0, up to 1,000,000")]
_Seconds = Annotated[float, Meta(ge=0, le=1e6, description="a number of seconds from 0 to 1,000,000")]


class Options(Struct, frozen=True, kw_only=True):
    """Options that are checked by their types when they are made; a type's description says what is allowed."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            check_option(type(self), name, value)
            if isinstance(value, list):  # whoever made the list could still change it
                force_setattr(self, name, tuple(value))


def check_option(kind: type[Options], name: str, value: Any) -> None:
    """Raise a ValueError if an option cannot have this value, whatever the other options are."""
    (option,) = (option for option in fields(kind) if option.name == name)
    try:
        # msgspec takes no subclass of float, such as numpy's.
        convert(float(value) if isinstance(value, float) else value, option.type)
        possible = not isinstance(value, Set)  # msgspec takes a set for a list, but a set has no order
    except ValidationError:
        possible = False
    if not possible or (option.type == _Sizes and [*value] != sorted({*value})):
        allowed = option.type.__metadata__[-1].description
        raise ValueError(f"{name} = {value!r} is not possible: it must be {allowed}.")


class TaskOptions(Options, frozen=True, kw_only=True):
    """How one task's jobs are put together into batches."""

    #: Jobs in one batch, at most.
    max_batch_size: Annotated[int, Meta(ge=1, le=65_536, description="a whole number from 1 to 65,536")] = 32
    #: Number of jobs times the longest of them, at most; None: no limit. A job above it runs alone.
    max_batch_tokens: _Limit = None
    #: Sizes, ascending, that a batch is padded up to by repeating an item: for models that are compiled for each size.
    #: The largest is the most jobs in a batch then. Empty: a batch of any size runs as it is.
    preferred_batch_sizes: _Sizes = ()
    #: Jobs of at most this length go before longer ones of the same priority; None: in the order of their claims.
    small_batch_threshold: _Limit = None
    #: Milliseconds, counted from enqueue, that a batch that is not full may wait for more jobs.
    max_wait_ms: Annotated[float, Meta(ge=0, le=1e9, description="a number of ms from 0 to 1,000,000,000")] = 0.0
    #: Full batches of jobs that wait in the worker, at most, so that the planner has something to choose from.
    look_ahead: Annotated[int, Meta(ge=1, le=10_000, description="a whole number of batches from 1 to 10,000")] = 8
    #: Milliseconds after enqueue from which a job is served before any other, whatever its priority; inf: never.
    max_age_ms: Annotated[float, Meta(ge=0, description="a number of ms from 0 up, or inf")] = 10_000.0
    #: Seconds that user code may work on one batch, in each step (preparing, collating, running, postprocessing). After
    #: that it counts as hung, and one lease later other workers get the batch.
    batch_time_limit_s: _TimeLimit = 300.0
    #: Threads of this task alone that run its `preprocess` and `length`. With more than one these hooks, and every
    #: object that they use, must be thread-safe.
    preprocess_threads: Annotated[int, Meta(ge=1, le=1_000, description="a whole number from 1 to 1,000")] = 1

    #: Deliveries of one job, at most: each time its lease ran out, because its worker died, hung or lost its
    #: connection, it is delivered again. After that it fails, and is kept with the dead letters.
    max_deliveries: Annotated[int, Meta(ge=1, le=1_000_000, description="a whole number from 1 to 1,000,000")] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [*self.preferred_batch_sizes]
        if sizes and sizes[-1] > self.max_batch_size:
            raise ValueError(f"preferred_batch_sizes = {sizes} exceed max_batch_size = {self.max_batch_size}.")

    @property
    def max_waiting(self) -> int:
        """Jobs of this task that may wait in one worker."""
        return self.max_batch_size * self.look_ahead


#: Names of a task's batching options, as attributes of a BatchTask.
TASK_OPTION_NAMES: Sequence[str] = TaskOptions.__struct_fields__


class WorkerOptions(Options, frozen=True, kw_only=True):
    """What one worker serves, and how it claims, holds and settles."""

    #: Names of the batch tasks that are loaded and served; None: all of the app's.
    tasks: _Names = None
    #: Where models are loaded: "auto" (CUDA where a GPU is to be had, else the CPU) or a torch device name.
    device: Annotated[_Text, Meta(description='"auto" or a torch device')] = "auto"
    #: Seconds that measuring a task's examples may take at start, for each task; 0: not at all.
    warm_up_s: _Seconds = 10.0
    #: Seconds that a claimed message is ours without a refresh; a dead worker's jobs run again after this.
    lease_s: Annotated[float, Meta(ge=1, le=1e6, description="a number of seconds from 1 to 1,000,000")] = 30.0
    #: Bytes of messages that one claim takes, at most (one larger message is taken alone).
    claim_max_bytes: _Bytes = 32 * 1024 * 1024
    #: Bytes of messages held at once (waiting, running, settling), at most; each batch task may hold an equal share.
    held_max_bytes: _Bytes = 256 * 1024 * 1024
    #: Dead letters of one queue (messages of jobs that were given up) that are kept, at most; 0: none are kept.
    dead_letters: Annotated[int, Meta(ge=0, le=1_000_000, description="a whole number from 0 to 1,000,000")] = 1_000
    #: Bytes of the dead letters of one queue, at most (the newest is kept whatever its size).
    dead_letters_max_bytes: _Bytes = 64 * 1024 * 1024
    #: Seconds that a dead letter is kept.
    dead_letters_max_age_s: _TimeLimit = 604_800.0
    #: Seconds that a stopping worker waits for its running batch.
    drain_timeout_s: _Seconds = 60.0
