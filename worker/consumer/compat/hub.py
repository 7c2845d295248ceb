"""The way to the hub: what other threads want done on Celery's main thread, in order, in one callback."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any
from weakref import ref

from celery.worker import state

logger = logging.getLogger(__name__)

_id = attrgetter("id")

#: Seconds between two turns of the hub for our calls, while there are some.
_PAUSE_S = 0.01


class HubCalls:
    """Runs calls on the hub's thread, first in, first out.

    The hub itself keeps its callbacks in a set, without order; so it gets one callback that empties our own line. Under
    load that happens every `_PAUSE_S`, not with every call: each turn of the hub costs the other threads the GIL.
    Celery's `worker.state` changes only here: its sets must not change under whoever iterates over them on the hub.
    """

    def __init__(self, hub: Any) -> None:
        """Send calls to `hub`."""
        self._hub = hub
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._ticking = False
        self._hushed = False
        self._lock = threading.Lock()

    def call(self, function: Callable[..., Any], *args: Any, soon: bool = False) -> None:
        """Run `function(*args)` on the hub's thread, after every earlier call; without a pause if `soon`."""
        with self._lock:
            self._calls.append((function, args))
            idle = not self._ticking and (soon or not self._hushed)
            self._ticking = self._ticking or idle
        if idle:
            self._hub.call_soon(self._tick)
        elif soon:
            self._hub.call_soon(self.run)

    def hush(self) -> None:
        """Leave the hub asleep, if it is, until `wake`; calls that are to run soon wake it all the same."""
        with self._lock:
            self._hushed = True

    def wake(self) -> None:
        """End a `hush`: run what is in line."""
        with self._lock:
            self._hushed = False
            idle = bool(self._calls) and not self._ticking
            self._ticking = self._ticking or idle
        if idle:
            self._hub.call_soon(self._tick)

    def revive(self) -> None:
        """Go on after the hub was reset, which forgets callbacks and timers. On the hub's thread."""
        self._tick()

    def run(self) -> bool:
        """Run what is in line, on the calling thread: the hub's, or any once the hub has stopped."""
        with self._lock:
            calls, self._calls = self._calls, deque()
        for function, args in calls:
            try:
                function(*args)
            except Exception:
                logger.exception("A call on the hub failed: %r", function)
        return bool(calls)

    def _tick(self) -> None:
        if self.run():
            self._hub.call_later(_PAUSE_S, self._tick)
            return
        with self._lock:
            self._ticking = bool(self._calls)
        if self._ticking:
            self._hub.call_soon(self._tick)


def reserved(requests: Sequence[Any]) -> None:
    """Take note of requests that wait: `state.task_reserved` for many. On the hub."""
    state.requests.update(zip(map(_id, requests), requests, strict=True))
    _add(state.reserved_requests, requests)


def accepted(requests: Sequence[Any]) -> None:
    """Take note of requests that run: `state.task_accepted` for many. On the hub."""
    _add(state.active_requests, requests)
    names = Counter(request.name for request in requests)
    state.total_count.update(names)
    state.all_total_count[0] += len(requests)


def gone(requests: Sequence[Any]) -> None:
    """Take note of requests that are through, or were given back. On the hub.

    As `state.task_ready` for many, but the ids of the successful are not kept: only Celery's own tracer asks for them.
    """
    forget = state.requests.pop
    for task_id in map(_id, requests):
        forget(task_id, None)
    _discard(state.active_requests, requests)
    _discard(state.reserved_requests, requests)


# Python's own `update` and `difference_update` of weak sets go request by request, in Python: a tenth of what a no-op
# task costs. Ours are not told when a request dies; each is taken out by `gone`.


def _add(requests: Any, more: Sequence[Any]) -> None:
    requests.data.update(map(ref, more))


def _discard(requests: Any, some: Sequence[Any]) -> None:
    requests.data.difference_update(map(ref, some))
