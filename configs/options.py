"""Settings of a task and of a worker. A bad value is refused here, with what is allowed in the message."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise


class OptionError(ValueError):
    """The value of one option is wrong, whatever the others are. (Options that contradict each other: ValueError.)"""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        """Refuse `value` for the option `name`."""
        super().__init__(f"{name} = {value!r} is not possible: it must be {allowed}.")
        self.name = name


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise OptionError(name, value, allowed)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < float("inf")


def _is_ascending(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return all(map(_is_count, value)) and all(low < high for low, high in pairwise(value))


def _is_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How one task's jobs are put together into batches."""

    #: Jobs in one batch, at most.
    max_batch_size: int = 32
    #: Number of jobs times the longest of them, at most; None: no limit. A job above it runs alone.
    max_batch_tokens: int | None = None
    #: Sizes, ascending, that a batch is padded up to by repeating an item: for models that are compiled for each size.
    #: The largest is the most jobs in a batch then. Empty: a batch of any size runs as it is.
    preferred_batch_sizes: Sequence[int] = ()
    #: Jobs of at most this length go before longer ones of the same priority; None: in the order of their claims.
    small_batch_threshold: int | None = None
    #: Milliseconds, counted from enqueue, that a batch that is not full may wait for more jobs.
    max_wait_ms: float = 0.0
    #: Full batches of jobs that wait in the worker, at most, so that the planner has something to choose from.
    look_ahead: int = 8
    #: Milliseconds after enqueue from which a job is served before any other, whatever its priority; inf: never.
    max_age_ms: float = 10_000.0
    #: Seconds after which a running batch counts as hung: its jobs' leases are no longer refreshed.
    batch_time_limit_s: float = 300.0

    def __post_init__(self) -> None:
        _require(_is_count(self.max_batch_size), "max_batch_size", self.max_batch_size, "a whole number from 1 up")
        tokens = self.max_batch_tokens
        _require(tokens is None or _is_count(tokens), "max_batch_tokens", tokens, "None or a whole number from 1 up")
        sizes = self.preferred_batch_sizes
        _require(_is_ascending(sizes), "preferred_batch_sizes", sizes, "a list of ascending whole numbers from 1 up")
        if sizes and sizes[-1] > self.max_batch_size:
            raise ValueError(f"preferred_batch_sizes = {sizes!r} exceed max_batch_size = {self.max_batch_size}.")
        small = self.small_batch_threshold
        _require(small is None or _is_count(small), "small_batch_threshold", small, "None or a whole number from 1 up")
        _require(_is_number(self.max_wait_ms, 0), "max_wait_ms", self.max_wait_ms, "a finite number of ms from 0 up")
        _require(_is_count(self.look_ahead), "look_ahead", self.look_ahead, "a whole number of batches from 1 up")
        age, limit = self.max_age_ms, self.batch_time_limit_s
        _require(_is_number(age, 0) or age == float("inf"), "max_age_ms", age, "a number of ms from 0 up, or inf")
        _require(_is_number(limit, 0) and limit > 0, "batch_time_limit_s", limit, "a finite number of seconds above 0")

    @property
    def max_waiting(self) -> int:
        """Jobs of this task that may wait in one worker."""
        return self.max_batch_size * self.look_ahead


#: Names of a task's batching options, as attributes of a BatchTask.
TASK_OPTION_NAMES: Sequence[str] = tuple(option.name for option in fields(TaskOptions))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What one worker serves, and how it claims, holds and settles."""

    #: Names of the batch tasks that are loaded and served; None: all of the app's.
    tasks: Sequence[str] | None = None
    #: Where models are loaded: "auto" (CUDA where a GPU is to be had, else the CPU) or a torch device name.
    device: str = "auto"
    #: Seconds that measuring a task's examples may take at start, for each task; 0: not at all.
    warm_up_s: float = 10.0
    #: Threads that run the tasks' `preprocess`.
    preprocess_threads: int = 2
    #: Seconds that a claimed message is ours without a refresh; a dead worker's jobs run again after this.
    lease_s: float = 30.0
    #: Bytes of messages that one claim takes, at most (one larger message is taken alone).
    claim_max_bytes: int = 32 * 1024 * 1024
    #: Bytes of messages held at once (waiting, running, settling), at most; each batch task may hold an equal share.
    held_max_bytes: int = 256 * 1024 * 1024
    #: Seconds that a stopping worker waits for its running batch.
    drain_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.tasks is not None:
            _require(_is_names(self.tasks), "tasks", self.tasks, "a list of names of tasks; without it all are served")
            object.__setattr__(self, "tasks", tuple(self.tasks))
        _require(isinstance(self.device, str) and self.device != "", "device", self.device, '"auto" or a torch device')
        threads = self.preprocess_threads
        _require(_is_count(threads), "preprocess_threads", threads, "a whole number from 1 up")
        _require(_is_number(self.lease_s, 1), "lease_s", self.lease_s, "a finite number of seconds from 1 up")
        for name in ("claim_max_bytes", "held_max_bytes"):
            _require(_is_count(getattr(self, name)), name, getattr(self, name), "a whole number of bytes from 1 up")
        _require(_is_number(self.warm_up_s, 0), "warm_up_s", self.warm_up_s, "a finite number of seconds from 0 up")
        timeout = self.drain_timeout_s
        _require(_is_number(timeout, 0), "drain_timeout_s", timeout, "a finite number of seconds from 0 up")
