"""Host: the engine inside this process, with no broker."""

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self

from ...batchers import BatcheryError
from ...configs import WorkerOptions
from .lifecycle import Engine
from .local_calls import NOT_RUN, LocalCalls
from .model import Model
from .state import EngineState


class Host:
    """Serves one task to the threads and coroutines of this process, in the same batches as a worker would.

        with Host(embed) as host:
            vector = host("a text")                  # from any thread; waits
            future = host.submit("another")          # a concurrent.futures.Future
            vectors = host.map(["many", "texts"])    # in order
            vector = await host.acall("a text")      # from a coroutine

    At most `max_queue` calls of `submit` and `map` may wait in line; then their callers wait too, or get `JobRejected`
    if they asked not to. A host serves once: after `stop`, make a new one.
    """

    def __init__(self, task: Model, *, max_queue: int | None = None, options: WorkerOptions | None = None) -> None:
        """Host `task`; `max_queue` defaults to twice what the planner looks ahead."""
        if isinstance(task, type):
            raise TypeError(f"Host needs a task, not its class: Host({task.__name__}()).")
        if max_queue is None:
            max_queue = 2 * task.options.max_waiting
        if max_queue < 1:
            raise ValueError(f"max_queue = {max_queue!r} is not possible: it must be a whole number from 1 up.")
        self._task = task
        self._options = options or WorkerOptions()
        self._calls = LocalCalls(max_queue)
        state = EngineState({task.name: task}, self._options)
        self._engine = Engine(state, self._calls, self._calls)
        self._used = False

    def start(self) -> Self:
        """Load the model and start serving.

        Raises:
            BatcheryError: the host was started or stopped before.
            Exception: whatever the task's `load` raises; the host may be started again then.
        """
        if self._used:
            raise BatcheryError("This host was started or stopped before, and a host serves once: make a new one.")
        self._engine.load()
        self._used = True
        self._engine.start()
        self._calls.open()
        return self

    def stop(self) -> None:
        """Finish every call that was taken, then stop. Later calls are rejected.

        If no call is answered for `drain_timeout_s`, those that are left fail with `BatchFailed`.
        """
        self._used = True
        answered = self._calls.close(self._options.drain_timeout_s)
        self._engine.drain(self._options.drain_timeout_s if answered else 0.0)
        self._calls.fail_rest(NOT_RUN)

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    def submit(self, *args: Any, block: bool = True, **kwargs: Any) -> "Future[Any]":
        """Send one call; return its future. Cancelling the future withdraws a call that does not run yet.

        The future's callbacks run on the thread that settles all calls: they must not wait for this host.

        Raises:
            JobRejected: the host does not run, or its queue is full and `block` is false.
        """
        return self._calls.put(self._task.name, args, kwargs, when_full="wait" if block else "reject")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send one call and wait for its result; raises as `submit`, and whatever the call itself raises."""
        return self.submit(*args, **kwargs).result()

    def map(self, *columns: Iterable[Any]) -> list[Any]:
        """Send a call for each item and wait for all; return the results in order.

        Where the task takes several arguments, give as many iterables. The first call that fails raises, and the calls
        that do not run yet are withdrawn.
        """
        futures: list[Future[Any]] = []
        try:
            futures += [self.submit(*args) for args in zip(*columns, strict=True)]
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    async def acall(self, *args: Any, block: bool = True, **kwargs: Any) -> Any:
        """Send one call and await its result; cancelling the coroutine withdraws a call that does not run yet.

        Unless `block` is false the call joins the line however long it is: a coroutine waits for its own call anyway.
        """
        when_full: Literal["join", "reject"] = "join" if block else "reject"
        return await asyncio.wrap_future(self._calls.put(self._task.name, args, kwargs, when_full=when_full))

    def stats(self) -> dict[str, int | float]:
        """Return what was done so far, as `Engine.stats`."""
        return self._engine.stats()
