"""A source, a sink and a model whose every step a test can hold up, and wait for. No test here sleeps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from batchery.batchers import Batch, Batcher, Job, ListBatcher, Outcome
from batchery.configs import TaskOptions, WorkerOptions
from batchery.worker.engine import Capacity, Engine, EngineState

#: A fixture's function that starts an engine for one test.
StartEngine = Callable[..., Engine]

#: Seconds after which a test gives up waiting.
DEADLINE_S = 20.0


class FakePorts:
    """Hands out the jobs that the test puts in line, and writes down what the engine does with them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.line: list[Job] = []
        self.claimed: list[Job] = []
        self.limits: list[int] = []
        self.batches: list[list[str]] = []
        self.outcomes: list[Outcome] = []
        self.settlements = 0
        self.given_back: list[Job] = []
        self.broken_by: list[Exception] = []
        #: Suspects that asked whether they may run, and the answer that they get.
        self.asked: list[list[str]] = []
        self.admitting = True
        #: Jobs that user code began, or ended, to work on.
        self.worked_on: list[tuple[list[str], bool]] = []
        #: Ids of jobs that nobody wants any more.
        self.unwanted: set[str] = set()
        #: Outcomes that `settle` refuses, each time.
        self.refuses: Callable[[Outcome], bool] = lambda outcome: False
        #: Raised by the method of that name, once.
        self.failing: dict[str, BaseException] = {}
        #: Every claim lasts until this is set, even if it is interrupted.
        self.may_claim = threading.Event()
        self.may_claim.set()
        self.interrupted = False
        self.interrupts = 0
        #: Whether a claim waits for jobs: then all that was claimed before has been handed on.
        self.claim_waits = False

    # -- For the test ------------------------------------------------------------------------------------------------

    def put(self, *jobs: Job) -> None:
        with self.changed:
            self.line += jobs
            self.changed.notify_all()

    def wait_for(self, predicate: Callable[[], Any], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(predicate, DEADLINE_S), f"never happened: {what}; outcomes: {self.answers()}"

    def wait_until_all_are_claimed(self) -> None:
        self.wait_for(lambda: self.claim_waits and not self.line, "all are claimed")

    def wait_for_outcomes(self, count: int) -> list[Outcome]:
        self.wait_for(lambda: len(self.outcomes) >= count, f"{count} outcomes")
        return self.outcomes

    def answers(self) -> dict[str, Any]:
        """What became of each job: its value, or its error."""
        return {outcome.job.id: outcome.error or outcome.value for outcome in self.outcomes}

    # -- For the engine: see ports.py --------------------------------------------------------------------------------

    def claim(self, capacity: Mapping[str, Capacity]) -> list[Job]:
        self._fail("claim")
        room = min(free.jobs for free in capacity.values())
        with self.changed:
            self.limits.append(room)
            self.claim_waits = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.line or self.interrupted)
            self.claim_waits = False
            jobs, self.line = self.line[:room], self.line[room:]
            if self.interrupted:
                jobs = []
            self.claimed += jobs
            self.changed.notify_all()
        assert self.may_claim.wait(DEADLINE_S)
        return jobs

    def current(self, job: Job) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def interrupt(self) -> None:
        with self.changed:
            self.interrupted = True
            self.interrupts += 1
            self.changed.notify_all()

    def drop_cancelled(self, jobs: list[Job]) -> list[Job]:
        self._fail("drop_cancelled")
        return [job for job in jobs if job.id not in self.unwanted]

    def admits(self, batch: Batch) -> bool:
        with self.changed:
            self.asked.append(ids(batch.jobs))
            self.changed.notify_all()
        return self.admitting

    def working(self, jobs: Sequence[Job], *, begins: bool) -> None:
        with self.changed:
            self.worked_on.append((ids(jobs), begins))
            self.changed.notify_all()

    def started(self, batch: Batch) -> None:
        self._fail("started")
        with self.changed:
            self.batches.append([job.id for job in batch.jobs])
            self.changed.notify_all()

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        if any(outcome.error is None and self.refuses(outcome) for outcome in outcomes):
            raise ValueError("one of these cannot be stored")
        with self.changed:
            self.settlements += 1
            self.outcomes += outcomes
            self.changed.notify_all()
        self._fail("settle")

    def give_back(self, jobs: Sequence[Job]) -> None:
        with self.changed:
            self.given_back += jobs
            self.changed.notify_all()

    def broken(self, error: Exception) -> None:
        with self.changed:
            self.broken_by.append(error)
            self.changed.notify_all()
        self.interrupt()

    def _fail(self, method: str) -> None:
        error = self.failing.pop(method, None)
        if error is not None:
            raise error


class Gate:
    """Holds up every thread that passes through, until the test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._reached = threading.Event()

    def pass_through(self) -> None:
        self._reached.set()
        assert self._open.wait(DEADLINE_S), "the test never opened the gate"

    def wait_until_reached(self) -> None:
        assert self._reached.wait(DEADLINE_S), "no thread came to the gate"

    def open(self) -> None:
        self._open.set()


class Held:
    """A `predict` that writes down every batch and holds it up at its gate."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.batches: list[list[Any]] = []

    def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        self.gate.pass_through()
        return [item * 2 for item in items]


class FakeModel:
    """A model as the engine asks for it, each of its parts a function of the test's."""

    def __init__(
        self,
        name: str = "double",
        *,
        predict: Callable[[list[Any]], Any] | None = None,
        preprocess: Callable[[Any], Any] | None = None,
        postprocess: Callable[[Any], Any] = lambda output: output,
        length: Callable[[Any], Any] | None = None,
        batcher: Batcher | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        self.name = name
        self.options = TaskOptions(**options)
        self.batcher = batcher or ListBatcher()
        self.runs_user_code_per_item = preprocess is not None
        self.prepares_one_by_one = False
        self.postprocesses = True
        self.measures_items = length is not None or batcher is not None
        self.counts_as_batcher = length is None
        self.examples: list[Any] = []
        self.loads = 0
        self.device = device
        self.predict = predict or _double
        self.postprocess = postprocess
        self._preprocess = preprocess
        self._length = length

    def ensure_loaded(self, device: str = "auto") -> str:
        self.loads += 1
        return self.device

    def prepare_many(self, calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
        if self._preprocess is None:
            return [args[0] for args, _ in calls]
        return [self._preprocess(args[0]) for args, _ in calls]

    def prepare_examples(self) -> list[Any]:
        return self.prepare_many([((example,), {}) for example in self.examples])

    def item_length(self, item: Any) -> int | None:
        count = self._length or getattr(self.batcher, "length", None)
        return None if count is None else int(count(item))


def _double(items: list[Any]) -> list[Any]:
    return [item * 2 for item in items]


class Jobs:
    """Makes jobs, numbered as if they were claimed in the order in which they are made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, value: Any, task: str = "double", **fields: Any) -> Job:
        self.made += 1
        return Job(f"{task}-{value}", task, (value,), {}, None, fields.pop("enqueued_at", 0.0), self.made, **fields)

    def many(self, *values: Any, **fields: Any) -> list[Job]:
        return [self(value, **fields) for value in values]


def engine_threads() -> list[threading.Thread]:
    """The threads of every engine that there is."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("batchery-")]


def wait_until_gone(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads), threads


def in_background(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """Call `function` on a thread of its own."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=call, daemon=True).start()
    return future


def engine_of(model: FakeModel, ports: FakePorts) -> Engine:
    return Engine(EngineState({model.name: model}, WorkerOptions()), ports, ports)


def ids(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


def fails_for(bad: Any, error: BaseException) -> Callable[[Any], Any]:
    """A function that returns its argument, or raises where that is `bad`."""

    def function(item: Any) -> Any:
        if item == bad:
            raise error
        return item

    return function
