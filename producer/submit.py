"""Publishing in bulk, and the results of it."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from celery.result import AsyncResult, ResultSet

if TYPE_CHECKING:
    from .task import BatchTask

#: Message header: when the caller sent the job, in seconds since the epoch on the caller's clock.
ENQUEUED_AT = "batchery_enqueued_at"

#: Messages that one round trip to the broker carries.
PUBLISH_CHUNK = 1000


class BulkResult(ResultSet):  # type: ignore[misc]  # celery has no types
    """The results of `delay_many`: a Celery `ResultSet` that iterates over `AsyncResult`s in the order of the items."""

    def __iter__(self) -> Iterator[AsyncResult]:
        return iter(self.results)


def with_enqueue_time(options: dict[str, Any]) -> dict[str, Any]:
    """Return `apply_async` options with the header that says when the job was sent."""
    headers = {ENQUEUED_AT: time.time(), **(options.get("headers") or {})}
    return {**options, "headers": headers}


def delay_many(task: "BatchTask", calls: Sequence[tuple[Any, ...]], **options: Any) -> BulkResult:
    """Publish one message for each of `calls`, the positional arguments, in as few round trips as can be.

    Raises:
        TypeError: some call's arguments do not fit the task's signature; nothing was published.
        kombu.exceptions.BatchPublishError: the broker failed midway; what it has taken until then is not known.
    """
    for args in calls:
        task.__header__(*args)
    with task.app.producer_or_acquire() as producer:
        with producer.batch(max_size=PUBLISH_CHUNK):
            results = [task.apply_async(args, producer=producer, **options) for args in calls]
    return BulkResult(results, app=task.app)
