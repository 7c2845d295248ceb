"""Isolation: a failed batch is run again in halves until the bad job stands alone. Errors are classified here too."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .job import Batch, Job, Outcome

#: Messages for "out of memory", in lower case: of CUDA, MPS and XPU (torch), cuDNN and cuBLAS, torch on the CPU, ONNX
#: Runtime, and XLA. cuDNN answers `CUDNN_STATUS_NOT_SUPPORTED` if its workspace does not fit.
_OUT_OF_MEMORY = (
    "out of memory",
    "cudnn_status_not_supported",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "resource_exhausted",
)

#: Messages for CUDA errors that make the context unusable until the process ends, whatever else the message says.
_STICKY = (
    "illegal memory access",
    "illegal instruction",
    "device-side assert",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc error",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a smaller batch may succeed, because memory ran out and the device still works.

    The errors that led to this one count too: its causes, and the errors during whose handling it was raised.
    """
    return any(map(_reports_out_of_memory, _chain(error))) and not is_sticky(error)


def is_sticky(error: BaseException) -> bool:
    """Tell whether the device is lost to this process, so that everything that runs on it from now on fails too."""
    return any(word in _text(part) for part in _chain(error) for word in _STICKY)


def _reports_out_of_memory(error: BaseException) -> bool:
    # The class is known by its name, which CuPy's and every torch's have, because neither need be imported.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return any(word in _text(error) for word in _OUT_OF_MEMORY)


def _text(error: BaseException) -> str:
    try:
        return str(error).lower()
    except Exception:  # The `__str__` of a user's own exception class may itself fail.
        return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and all errors that led to it, each once."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        part = errors.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            yield part
            errors += [part.__cause__, part.__context__]


def run_isolated(
    batch: Batch, forward: Callable[[Sequence[Any]], list[Any]], free: Callable[[Sequence[Job]], None] = lambda _: None
) -> Iterator[list[Outcome]]:
    """Run a batch; yield the outcomes of each part as soon as it is done, each job exactly once.

    `forward(items)` returns one output per item. If it raises, the two halves run instead, down to single jobs, which
    then fail with the error: one bad job among n costs about 2 log2(n) more runs. An exception instance among the
    outputs fails its job alone. If jobs ran out of memory, `free(jobs)` is called before anything else runs, when the
    attempt's memory is no longer referenced; a single job is then tried once more.

    Raises:
        BaseException: the error of `forward`, if it means that the device is lost. Jobs without an outcome did not run.
    """
    parts = [batch.jobs] if batch.jobs else []
    while parts:
        jobs = parts.pop()
        outcomes, out_of_memory = _attempt(batch, jobs, forward)
        if out_of_memory:
            free(jobs)
            if len(jobs) == 1:
                outcomes, _ = _attempt(batch, jobs, forward)
        if outcomes:
            yield outcomes
        else:
            middle = len(jobs) // 2
            parts += [jobs[middle:], jobs[:middle]]


def _attempt(
    batch: Batch, jobs: Sequence[Job], forward: Callable[[Sequence[Any]], list[Any]]
) -> tuple[list[Outcome], bool]:
    """Return the jobs' outcomes (none if several jobs failed together), and whether memory ran out."""
    try:
        outputs = forward([job.item for job in jobs])
        return [_outcome(job, output, batch) for job, output in zip(jobs, outputs, strict=True)], False
    except BaseException as exc:  # Whatever the model raises, SystemExit too, is some caller's answer.
        if is_sticky(exc):
            raise
        _free_frames(exc)
        return [_outcome(jobs[0], exc, batch)] if len(jobs) == 1 else [], is_out_of_memory(exc)


def _free_frames(error: BaseException) -> None:
    """Empty the frames of the failed attempt, because they hold tensors whose memory the next attempt may need.

    The traceback still tells where the error was raised.
    """
    for part in _chain(error):
        traceback.clear_frames(part.__traceback__)


def _outcome(job: Job, output: Any, batch: Batch) -> Outcome:
    if isinstance(output, BaseException):
        return Outcome(job, error=output, batch=batch)
    return Outcome(job, value=output, batch=batch)
