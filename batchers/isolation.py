"""Isolate: re-run a failed batch in halves until the bad job stands alone; and what kind of failure it was."""

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .job import Batch, Job, Outcome

#: What says "out of memory", lower case: CUDA, MPS and XPU (torch), cuDNN and cuBLAS, torch on the CPU, ONNX Runtime,
#: XLA. `CUDNN_STATUS_NOT_SUPPORTED` is what cuDNN answers where its workspace does not fit.
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

#: What leaves a CUDA context unusable, until the process ends. It may come with any other words.
_STICKY = (
    "illegal memory access",
    "illegal instruction",
    "device-side assert",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc error",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a smaller batch may succeed: memory ran out, and the device is still sound.

    An error raised `from` such an error, or while it was handled, counts too.
    """
    chain = [*_chain(error)]
    return any(map(_says_out_of_memory, chain)) and not any(map(is_sticky, chain))


def is_sticky(error: BaseException) -> bool:
    """Tell whether the device is lost to this process: whatever runs on it now will fail too."""
    return any(word in _text(part) for part in _chain(error) for word in _STICKY)


def _says_out_of_memory(error: BaseException) -> bool:
    # Only a model that uses torch has imported it. CuPy's and older torch's classes have the name too.
    kind = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, (MemoryError, kind)) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(word in _text(error) for word in _OUT_OF_MEMORY)


def _text(error: BaseException) -> str:
    try:
        return str(error).lower()
    except Exception:  # a model's own class of errors may not even be able to say what it is
        return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, each once."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        part = errors.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            yield part
            errors += [part.__cause__, part.__context__]


def run_isolated(batch: Batch, forward: Callable[[Sequence[Any]], list[Any]]) -> Iterator[list[Outcome]]:
    """Run a batch; yield the outcomes of each part as soon as it is done, each job exactly once.

    `forward(items)` returns one output per item. Where it raises, the two halves run instead, down to single jobs,
    whose error is then their own: one bad job among n costs about 2 log2(n) more runs. An exception instance as an
    output is that job's failure alone.
    """
    parts = [batch.jobs] if batch.jobs else []
    while parts:
        jobs = parts.pop()
        if outcomes := _attempt(batch, jobs, forward):
            yield outcomes
        else:
            middle = len(jobs) // 2
            parts += [jobs[middle:], jobs[:middle]]


def _attempt(batch: Batch, jobs: Sequence[Job], forward: Callable[[Sequence[Any]], list[Any]]) -> list[Outcome]:
    """Return the jobs' outcomes; none if several jobs failed together: then nothing is kept of the attempt."""
    try:
        outputs = forward([job.item for job in jobs])
        return [_outcome(job, output, batch) for job, output in zip(jobs, outputs, strict=True)]
    except BaseException as exc:  # whatever the model raises, SystemExit too, is an answer to somebody
        _free_frames(exc)
        return [Outcome(jobs[0], error=exc, batch=batch)] if len(jobs) == 1 else []


def _free_frames(error: BaseException) -> None:
    """Empty the frames of the failed attempt: they hold its tensors, whose memory the next one may need.

    The traceback still tells where it happened.
    """
    for part in _chain(error):
        traceback.clear_frames(part.__traceback__)


def _outcome(job: Job, output: Any, batch: Batch) -> Outcome:
    if isinstance(output, BaseException):
        return Outcome(job, error=output, batch=batch)
    return Outcome(job, value=output, batch=batch)
