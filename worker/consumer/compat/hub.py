"""Queues calls from other threads to run on Celery's event loop, the hub, in order."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVarTuple

from celery.exceptions import WorkerShutdown, WorkerTerminate
from kombu.asynchronous import Hub

from ....batchers import without_text
from ... import tuning

logger = logging.getLogger(__name__)

_Args = TypeVarTuple("_Args")


class HubCalls:
    """Runs calls on the hub's thread, first in, first out.

    The hub keeps its own callbacks in a set, without order, so it gets one callback that runs all queued calls. Under
    load that happens every `HUB_PAUSE_S` and not with each call, because each turn of the hub costs the other threads
    the GIL.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._calls: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        #: Whether the hub will call `tick` again.
        self._ticking = False
        self._paused = False
        self._lock = threading.Lock()

    def call(self, function: Callable[[*_Args], object], *args: *_Args, soon: bool = False) -> None:
        """Run `function(*args)` on the hub's thread, after every earlier call; without a pause if `soon`."""
        with self._lock:
            self._calls.append((function, args))
            idle = not self._ticking and (soon or not self._paused)
            self._ticking = self._ticking or idle
        if idle:
            self._hub.call_soon(self.tick)
        elif soon:
            self._hub.call_soon(self.run)

    def pause(self) -> None:
        """Do not wake a sleeping hub until `resume`, except for a call that is to run soon."""
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        """End a `pause`, and run the queued calls."""
        with self._lock:
            self._paused = False
            idle = bool(self._calls) and not self._ticking
            self._ticking = self._ticking or idle
        if idle:
            self._hub.call_soon(self.tick)

    def run(self) -> bool:
        """Run the queued calls; return whether there were any. On the hub's thread, or on any once it stopped."""
        with self._lock:
            calls, self._calls = self._calls, deque()
        ran = bool(calls)
        while calls:
            function, args = calls.popleft()
            try:
                function(*args)
            except (WorkerShutdown, WorkerTerminate, KeyboardInterrupt):  # Celery ends its loop with these
                with self._lock:
                    self._calls.extendleft(reversed(calls))
                raise
            except BaseException as exc:  # SystemExit, too: a receiver of a signal may raise anything
                name = getattr(function, "__qualname__", function)
                logger.error("A call on the hub failed: %s: %s", name, without_text(exc))
        return ran

    def tick(self) -> None:
        """Run the queued calls, and come back if there were any. Also to be called after the hub was reset."""
        if self.run():
            self._hub.call_later(tuning.HUB_PAUSE_S, self.tick)
            return
        with self._lock:
            self._ticking = bool(self._calls)
        if self._ticking:
            self._hub.call_soon(self.tick)
