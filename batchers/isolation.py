"""Isolate: re-run a failed batch in halves until the bad job stands alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .job import Batch, Outcome


def run_isolated(batch: Batch, forward: Callable[[Sequence[Any]], list[Any]]) -> Iterator[list[Outcome]]:
    """Run a batch; yield the outcomes of each part as soon as it is done, each job exactly once.

    `forward(items)` returns one output per item. Where it raises, the two halves run instead, down to single jobs,
    whose error is then their own: one bad job among n costs about 2 log2(n) more runs. An exception instance as an
    output is that job's failure alone.
    """
    parts = [batch.jobs]
    while parts:
        jobs = parts.pop()
        outputs, error = _attempt(forward, [job.item for job in jobs])
        if error is None:
            yield [_outcome(job, output, batch) for job, output in zip(jobs, outputs, strict=True)]
        elif len(jobs) == 1:
            yield [Outcome(jobs[0], error=error, batch=batch)]
        else:
            middle = len(jobs) // 2
            parts += [jobs[middle:], jobs[:middle]]


def _attempt(forward: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> tuple[list[Any], Any]:
    try:
        return forward(items), None
    except BaseException as exc:  # whatever the model raises, SystemExit too, is an answer to somebody
        error = exc
    # The halves run outside the except block and without the traceback: both hold the frames of the failed attempt,
    # and with them its tensors, which is what an out-of-memory error needs freed.
    return [], error if len(items) == 1 else error.with_traceback(None)


def _outcome(job: Any, output: Any, batch: Batch) -> Outcome:
    if isinstance(output, BaseException):
        return Outcome(job, error=output, batch=batch)
    return Outcome(job, value=output, batch=batch)
