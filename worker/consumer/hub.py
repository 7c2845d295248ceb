"""The way to the hub: what other threads want done on Celery's main thread, in order, in one callback."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from celery.worker import state

logger = logging.getLogger(__name__)


class HubCalls:
    """Runs calls on the hub's thread, first in, first out.

    The hub itself keeps its callbacks in a set, without order; so it gets one callback that empties our own line.
    Celery's `worker.state` changes only here: its sets must not change under whoever iterates over them on the hub.
    """

    def __init__(self, hub: Any) -> None:
        """Send calls to `hub`."""
        self._hub = hub
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._scheduled = False
        self._lock = threading.Lock()

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run `function(*args)` on the hub's thread, after every earlier call."""
        with self._lock:
            self._calls.append((function, args))
            if self._scheduled:
                return
            self._scheduled = True
        self._hub.call_soon(self.run)

    def run(self) -> None:
        """Run what is in line, on the calling thread, which is the hub's; after the hub has stopped, on any."""
        with self._lock:
            self._scheduled = False
            calls, self._calls = self._calls, deque()
        for function, args in calls:
            try:
                function(*args)
            except Exception:
                logger.exception("A call on the hub failed: %r", function)


def reserved(requests: Iterable[Any]) -> None:
    """Take note of requests that wait. On the hub."""
    for request in requests:
        state.task_reserved(request)


def accepted(requests: Iterable[Any]) -> None:
    """Take note of requests that run. On the hub; as `state.task_accepted`, but the counter is updated in bulk."""
    names: Counter[str] = Counter()
    for request in requests:
        state.requests[request.id] = request
        state.active_requests.add(request)
        names[request.name] += 1
    state.total_count.update(names)
    state.all_total_count[0] += names.total()


def ready(requests: Iterable[Any], successful: bool) -> None:
    """Take note of requests that are through. On the hub."""
    for request in requests:
        state.task_ready(request, successful=successful)


def gone(requests: Iterable[Any]) -> None:
    """Take note of requests that were given back. On the hub."""
    for request in requests:
        state.task_ready(request, successful=False)
