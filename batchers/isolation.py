"""Isolate: re-run a failed batch in halves until the bad job stands alone."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .job import Batch, Job, Outcome


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
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        part = errors.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            traceback.clear_frames(part.__traceback__)
            errors += [part.__cause__, part.__context__]


def _outcome(job: Job, output: Any, batch: Batch) -> Outcome:
    if isinstance(output, BaseException):
        return Outcome(job, error=output, batch=batch)
    return Outcome(job, value=output, batch=batch)
