"""Isolation: a failed batch is run again in halves until the bad job stands alone. Errors are classified here too."""

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .job import Batch, Job, Outcome

#: Errors that say "out of memory", by class, of packages that need not be imported, and by what their text begins with.
#: The text of any other class may quote a caller, and therefore decides nothing. torch raises plain RuntimeErrors where
#: it has no class; cuDNN answers `CUDNN_STATUS_NOT_SUPPORTED` if its workspace does not fit.
_OUT_OF_MEMORY = {
    "torch.OutOfMemoryError": "",
    "cupy.OutOfMemoryError": "",
    "torch.AcceleratorError": "CUDA error: out of memory",
    "builtins.RuntimeError": r"CUDA (error: )?out of memory|CUDA error: CUBLAS_STATUS_ALLOC_FAILED|"
    r"cuDNN error: CUDNN_STATUS_(NOT_SUPPORTED|ALLOC_FAILED)|MPS backend out of memory|"
    r"\[enforce fail at alloc_cpu\.cpp|DefaultCPUAllocator: can't allocate memory",
    "jaxlib.XlaRuntimeError": "RESOURCE_EXHAUSTED: ",
    "jax.JaxRuntimeError": "RESOURCE_EXHAUSTED: ",
    "onnxruntime.RuntimeException": r"\[ONNXRuntimeError\] : .*"
    r"Failed to allocate memory for requested buffer of size \d+\s*$",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a smaller batch may succeed, because memory ran out.

    Only the error itself counts, and not those that led to it.
    """
    kind = type(error)
    beginning = _OUT_OF_MEMORY.get(f"{str(kind.__module__).partition('.')[0]}.{kind.__name__}")
    if beginning is None:
        return isinstance(error, MemoryError)
    text = next(iter(error.args), "")
    return isinstance(text, str) and re.match(beginning, text, re.DOTALL) is not None


def run_isolated(
    batch: Batch,
    forward: Callable[[Sequence[Any]], list[Any]],
    free: Callable[[Sequence[Job]], None] = lambda _: None,
    check_device: Callable[[], None] = lambda: None,
) -> Iterator[list[Outcome]]:
    """Run a batch; yield the outcomes of each part as soon as it is done, each job exactly once.

    `forward(items)` returns one output per item. If it raises, the two halves run instead, down to single jobs, which
    then fail with the error: one bad job among n costs about 2 log2(n) more runs. An exception instance among the
    outputs fails its job alone. If jobs ran out of memory, `free(jobs)` is called before anything else runs, when the
    attempt's memory is no longer referenced; a single job is then tried once more.

    Raises:
        BaseException: what `check_device` raised after `forward` did: the device is lost to this process, so that
            everything that runs on it from now on fails too. Jobs without an outcome did not run.
    """
    parts = [batch.jobs] if batch.jobs else []
    while parts:
        jobs = parts.pop()
        outcomes, out_of_memory = _attempt(batch, jobs, forward, check_device)
        if out_of_memory:
            free(jobs)
            if len(jobs) == 1:
                outcomes, _ = _attempt(batch, jobs, forward, check_device)
        if outcomes:
            yield outcomes
        else:
            middle = len(jobs) // 2
            parts += [jobs[middle:], jobs[:middle]]


def _attempt(
    batch: Batch,
    jobs: Sequence[Job],
    forward: Callable[[Sequence[Any]], list[Any]],
    check_device: Callable[[], None],
) -> tuple[list[Outcome], bool]:
    """Return the jobs' outcomes (none if several jobs failed together), and whether memory ran out."""
    try:
        outputs = forward([job.item for job in jobs])
        return [_outcome(job, output, batch) for job, output in zip(jobs, outputs, strict=True)], False
    except BaseException as exc:  # Whatever the model raises, SystemExit too, is some caller's answer.
        check_device()
        _free_frames(exc)
        return [_outcome(jobs[0], exc, batch)] if len(jobs) == 1 else [], is_out_of_memory(exc)


def _free_frames(error: BaseException) -> None:
    """Empty the frames of the failed attempt, because they hold tensors whose memory the next attempt may need.

    The tracebacks of the error, and of all errors that led to it, still tell where each was raised.
    """
    errors, freed = [error], set[int]()
    for part in errors:  # The list grows while it is read.
        if id(part) not in freed:
            freed.add(id(part))
            traceback.clear_frames(part.__traceback__)
            errors += [other for other in (part.__cause__, part.__context__) if other is not None]


def _outcome(job: Job, output: Any, batch: Batch) -> Outcome:
    if isinstance(output, BaseException):
        return Outcome(job, error=output, batch=batch)
    return Outcome(job, value=output, batch=batch)
