"""A trial, in which one worker answers many texts. Each text is sent with its own `delay`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis
from celery.exceptions import TimeoutError as CeleryTimeout

from tests.support.waiting import ServiceError
from tests.support.workers import Worker

from .backlog import RESULT_PREFIX
from .report import percentile, rounded


@dataclass(frozen=True)
class Trial:
    """The times at which texts were sent and answered, in seconds after the first one was sent, and their vectors."""

    sent: list[float]
    answered: list[float]
    vectors: np.ndarray

    @property
    def tasks_per_s(self) -> float:
        """The rate from the first text sent to the last result."""
        return rounded(len(self.answered) / max(self.answered))

    def latency_ms(self, percent: int) -> float:
        """Return a percentile of the times from the sending of a text to its result."""
        return percentile(
            (1000 * (after - before) for before, after in zip(self.sent, self.answered, strict=True)), percent
        )


class Arrivals(threading.Thread):
    """Records the time at which each result is published, which is when a waiting caller gets it."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.times: dict[str, float] = {}
        self._client: redis.Redis = redis.Redis.from_url(url)
        self._channel = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._channel.psubscribe(f"{RESULT_PREFIX}*")
        self._leave = threading.Event()

    def run(self) -> None:
        while not self._leave.is_set():
            if message := self._channel.get_message(timeout=0.1):
                task_id = message["channel"].decode().removeprefix(RESULT_PREFIX)
                self.times.setdefault(task_id, time.perf_counter())

    def close(self) -> None:
        self._leave.set()
        self.join()
        self._channel.close()
        self._client.close()


@contextmanager
def arrivals(url: str) -> Iterator[Arrivals]:
    thread = Arrivals(url)
    thread.start()
    try:
        yield thread
    finally:
        thread.close()


def answer_all(
    url: str,
    worker: Worker,
    task: Any,
    texts: Sequence[str],
    on_answered: Callable[[int], None] = lambda _: None,
    stalled_after_s: float = 60.0,
) -> Trial:
    """Send each text and wait for every result.

    Raise a `ServiceError` if the worker dies, or if no result arrives for `stalled_after_s`.
    """
    with arrivals(url) as arrived:
        start = time.perf_counter()
        results, sent = [], []
        for text in texts:
            sent.append(time.perf_counter() - start)
            results.append(task.delay(text))
        _wait(arrived, len(texts), worker, on_answered, stalled_after_s)
        answered = [arrived.times[result.id] - start for result in results]
    return Trial(sent, answered, np.array([_vector(result) for result in results]))


def _wait(
    arrived: Arrivals, count: int, worker: Worker, on_answered: Callable[[int], None], stalled_after_s: float
) -> None:
    seen, progress = 0, time.monotonic()
    while seen < count:
        time.sleep(0.01)
        if len(arrived.times) > seen:
            seen, progress = len(arrived.times), time.monotonic()
            on_answered(seen)
        elif not worker.alive() or time.monotonic() - progress > stalled_after_s:
            state = "is stuck" if worker.alive() else "died"
            raise ServiceError(
                f"{count - seen} of {count} texts have no answer, because the worker {state}:\n{worker.log[-3000:]}"
            )


def _vector(result: Any) -> Any:
    try:
        return result.get(timeout=10)
    except CeleryTimeout:
        raise ServiceError(f"The result of {result.id} was published, but `get()` does not return it.") from None
