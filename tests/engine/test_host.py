"""A host serves the threads and coroutines of one process: plain tasks, no broker, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from batchery.configs import WorkerOptions
from batchery.worker.engine import Capacity
from batchery.worker.engine.local_calls import LocalCalls
from hypothesis import given, settings
from hypothesis import strategies as st

from batchery import BatcheryError, BatchFailed, BatchTask, Host, JobRejected, PadBatcher
from tests.support.fakes import DEADLINE_S, Gate, in_background


class Double(BatchTask):
    """Doubles numbers; what the test puts into `hook` is called with every batch first."""

    def __init__(self, hook: Callable[[list[int]], Any] = len) -> None:
        self.hook = hook
        self.batches: list[list[int]] = []

    def predict(self, batch: list[int]) -> list[int]:
        self.batches.append(batch)
        self.hook(batch)
        return [item * 2 for item in batch]


class Narrow(Double):
    """Takes one at a time, so that an engine holds four: one that runs, and one in each of three other places."""

    max_batch_size = 1
    look_ahead = 1


class Scale(BatchTask):
    """Takes two arguments."""

    def preprocess(self, vector: list[float], by: float = 2.0) -> Any:
        return np.array(vector) * by

    batcher = PadBatcher(unpad=0)

    def predict(self, batch: Any) -> Any:
        return batch


@pytest.fixture
def serve() -> Iterator[Callable[..., Host]]:
    """`serve(task, ...)`: a host that is started, and stopped when the test is over."""
    with ExitStack() as stack:
        yield lambda task, **options: stack.enter_context(Host(task, **options))


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Holds up every batch until it is opened; at the latest when the test is over."""
    gate = Gate()
    yield gate
    gate.open()


Serve = Callable[..., Host]


@pytest.fixture
def held(serve: Serve, gate: Gate) -> tuple[Host, Narrow]:
    """A host with room for two calls in line, whose model has its first call, 0, and does not return."""
    task = Narrow(lambda _batch: gate.pass_through())
    host = serve(task, max_queue=2)
    host.submit(0)
    gate.wait_until_reached()
    return host, task


def fill(host: Host) -> list[Future[Any]]:
    """Send as many calls, from 1 on, as go into the engine (three more) and stand in line (two)."""
    return [host.submit(number) for number in range(1, 6)]


# -- Results -----------------------------------------------------------------------------------------------------------


def test_a_call_waits_for_its_result(serve: Serve) -> None:
    assert serve(Double())(21) == 42


def test_map_returns_the_results_in_order(serve: Serve) -> None:
    assert serve(Double(), max_queue=3).map(range(500)) == [number * 2 for number in range(500)]


def test_map_takes_as_many_iterables_as_the_task_takes_arguments(serve: Serve) -> None:
    host = serve(Scale())
    assert host.map([[1.0], [1.0, 2.0]], (2, 3)) == [[2.0], [3.0, 6.0]]
    assert host([1.0]) == host(vector=[1.0], by=2) == [2.0]
    with pytest.raises(ValueError, match="shorter"):
        host.map([[1.0], [2.0]], (2,))


def test_calls_that_come_together_run_together(serve: Serve, gate: Gate) -> None:
    task = Double(lambda _batch: gate.pass_through())
    host = serve(task)
    first = host.submit(0)
    gate.wait_until_reached()
    futures = [host.submit(number) for number in range(1, 20)]
    gate.open()
    assert [future.result(DEADLINE_S) for future in (first, *futures)] == [number * 2 for number in range(20)]
    assert len(task.batches) < 20
    assert [number for batch in task.batches for number in batch] == list(range(20))


@settings(deadline=None, max_examples=12)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 9))
def test_each_of_many_threads_gets_the_results_of_its_own_calls(threads: list[list[int]], size: int) -> None:
    task = Scale()
    task.max_batch_size = size
    with Host(task, max_queue=4) as host, ThreadPoolExecutor(len(threads)) as pool:

        def call(thread: int, lengths: list[int]) -> list[Any]:
            return [host([float(thread), *range(length)], by=1) for length in lengths]

        answers = list(pool.map(call, range(len(threads)), threads))
    assert answers == [
        [[float(thread), *map(float, range(length))] for length in lengths] for thread, lengths in enumerate(threads)
    ]


def test_each_coroutine_gets_the_result_of_its_own_call(serve: Serve) -> None:
    host = serve(Double(), max_queue=1)

    async def call_all() -> list[int]:
        return list(await asyncio.gather(*(host.acall(number) for number in range(300))))

    assert asyncio.run(call_all()) == [number * 2 for number in range(300)]


def test_threads_and_coroutines_may_mix(serve: Serve) -> None:
    host = serve(Double(), max_queue=2)

    async def call_all() -> list[int]:
        threads = [asyncio.to_thread(host, number) for number in range(50)]
        coroutines = [host.acall(number) for number in range(50)]
        return list(await asyncio.gather(*threads, *coroutines))

    assert asyncio.run(call_all()) == [number * 2 for number in range(50)] * 2


def test_the_stats_count_batches_jobs_and_padding(serve: Serve) -> None:
    host = serve(Double())
    host.map(range(10))
    host.stop()
    assert {**host.stats(), "batches": None, "mean_batch_size": None, "device_waited_share": None} == {
        "batches": None,
        "jobs": 10,
        "failed": 0,
        "held": 0,
        "mean_batch_size": None,
        "padding_share": 0.0,
        "device_waited_share": None,
    }


def test_a_task_made_by_the_decorator_needs_no_broker_either(serve: Serve) -> None:
    from celery import Celery

    app = Celery("app", broker="redis://nowhere.invalid:1/0")

    @app.task(base=BatchTask, length=len, shared=False)
    def shout(texts: list[str]) -> list[str]:
        return [text.upper() for text in texts]

    assert serve(shout).map(["a", "bc"]) == ["A", "BC"]


# -- Failures ----------------------------------------------------------------------------------------------------------


def refuse_13(batch: list[int]) -> None:
    if 13 in batch:
        raise ValueError("13 brings bad luck")


def test_one_calls_failure_is_its_own(serve: Serve) -> None:
    futures = [serve(Double(refuse_13)).submit(number) for number in range(20)]
    with pytest.raises(ValueError, match="bad luck"):
        futures[13].result(DEADLINE_S)
    assert [future.result(DEADLINE_S) for future in futures if future is not futures[13]] == [
        number * 2 for number in range(20) if number != 13
    ]


def test_a_call_with_wrong_arguments_fails_alone(serve: Serve) -> None:
    host = serve(Scale())
    with pytest.raises(TypeError, match="by_how_much"):
        host([1.0], by_how_much=3)
    assert host([1.0], by=3) == [3.0]


def test_map_raises_the_first_failure_and_withdraws_what_does_not_run_yet(serve: Serve, gate: Gate) -> None:
    def hook(batch: list[int]) -> None:
        if batch == [1]:
            gate.pass_through()
        if batch == [0]:
            raise ValueError("zero")

    task = Narrow(hook)
    host = serve(task)
    with pytest.raises(ValueError, match="zero"):
        host.map(range(4))
    gate.open()
    host.stop()
    assert [3] not in task.batches


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), StopIteration(5), asyncio.CancelledError()])
def test_no_error_of_the_models_can_end_its_callers_thread_or_keep_a_coroutine_waiting(
    error: BaseException, serve: Serve
) -> None:
    def fail(_batch: list[int]) -> None:
        raise error

    host = serve(Double(fail))
    with pytest.raises(BatchFailed) as failure:
        host(1)
    assert failure.value.__cause__ is error
    with pytest.raises(BatchFailed, match=type(error).__name__):
        asyncio.run(asyncio.wait_for(host.acall(1), DEADLINE_S))


# -- Cancelling --------------------------------------------------------------------------------------------------------


def test_a_cancelled_future_withdraws_its_call_and_disturbs_no_other(held: tuple[Host, Narrow], gate: Gate) -> None:
    host, task = held
    futures = fill(host)
    assert futures[1].cancel()
    assert futures[4].cancel()
    gate.open()
    assert [futures[place].result(DEADLINE_S) for place in (0, 2, 3)] == [2, 6, 8]
    host.stop()
    assert task.batches == [[0], [1], [3], [4]]
    with pytest.raises(CancelledError):
        futures[1].result(DEADLINE_S)


@pytest.mark.parametrize("stops", [False, True])
def test_waiters_for_a_cancelled_call_are_told(held: tuple[Host, Narrow], gate: Gate, stops: bool) -> None:
    host, _ = held
    futures = fill(host)
    assert all(future.cancel() for future in futures)
    if stops:
        host._calls.fail_rest("the host gives up on all")
    else:
        gate.open()
    assert wait(futures, DEADLINE_S).done == set(futures)


def test_a_call_that_runs_cannot_be_withdrawn(serve: Serve, gate: Gate) -> None:
    host = serve(Double(lambda _batch: gate.pass_through()))
    future = host.submit(1)
    gate.wait_until_reached()
    assert not future.cancel()
    gate.open()
    assert future.result(DEADLINE_S) == 2


def test_a_cancelled_coroutine_withdraws_its_call_and_disturbs_no_other(held: tuple[Host, Narrow], gate: Gate) -> None:
    host, task = held

    async def cancel_some() -> list[Any]:
        calls = [asyncio.create_task(host.acall(number)) for number in range(1, 9)]
        await asyncio.sleep(0)  # each has sent its call
        for call in calls[1::2]:
            call.cancel()
        await asyncio.wait(calls[1::2])
        gate.open()
        return list(await asyncio.gather(*calls, return_exceptions=True))

    answers = asyncio.run(asyncio.wait_for(cancel_some(), DEADLINE_S))
    assert answers[::2] == [2, 6, 10, 14]
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[1::2])
    host.stop()
    assert task.batches == [[0], [1], [3], [5], [7]]


def test_an_event_loop_that_is_gone_disturbs_no_other_call(held: tuple[Host, Narrow], gate: Gate) -> None:
    host, _ = held
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(host.acall(1), 0.01))
    other = host.submit(2)
    gate.open()
    assert other.result(DEADLINE_S) == 4


# -- A full line -------------------------------------------------------------------------------------------------------


def test_a_call_that_does_not_want_to_wait_is_rejected_when_the_line_is_full(
    held: tuple[Host, Narrow], gate: Gate
) -> None:
    host, _ = held
    futures = fill(host)
    with pytest.raises(JobRejected, match="queue is full: 2 calls wait"):
        host.submit(9, block=False)
    with pytest.raises(JobRejected, match="queue is full"):
        asyncio.run(host.acall(9, block=False))
    gate.open()
    assert [future.result(DEADLINE_S) for future in futures] == [2, 4, 6, 8, 10]
    assert host.submit(9, block=False).result(DEADLINE_S) == 18


def test_a_call_waits_while_the_line_is_full(held: tuple[Host, Narrow], gate: Gate) -> None:
    host, _ = held
    fill(host)
    waiting = [in_background(host.submit, number) for number in (8, 9)]
    with pytest.raises(TimeoutError):
        waiting[0].result(0.02)
    gate.open()
    assert sorted(future.result(DEADLINE_S).result(DEADLINE_S) for future in waiting) == [16, 18]


def test_coroutines_stand_in_line_however_long_it_is(held: tuple[Host, Narrow], gate: Gate) -> None:
    host, _ = held
    fill(host)

    async def call_all() -> list[int]:
        calls = [asyncio.create_task(host.acall(number)) for number in range(50)]
        await asyncio.sleep(0)
        gate.open()
        return list(await asyncio.gather(*calls))

    assert asyncio.run(asyncio.wait_for(call_all(), DEADLINE_S)) == [number * 2 for number in range(50)]


# -- Starting and stopping ---------------------------------------------------------------------------------------------


def test_stop_answers_every_call_that_was_taken() -> None:
    host = Host(Double()).start()
    futures = [host.submit(number) for number in range(200)]
    host.stop()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [number * 2 for number in range(200)]


def test_a_host_that_is_stopped_takes_no_calls_and_does_not_start_again() -> None:
    host = Host(Double()).start()
    host.stop()
    with pytest.raises(JobRejected, match="stopped"):
        host(1)
    with pytest.raises(JobRejected, match="stopped"):
        asyncio.run(host.acall(1))
    with pytest.raises(BatcheryError, match="make a new one"):
        host.start()
    host.stop()


def test_a_host_that_runs_does_not_start_again(serve: Serve) -> None:
    host = serve(Double())
    with pytest.raises(BatcheryError, match="make a new one"):
        host.start()
    assert host(1) == 2


def test_a_host_that_was_not_started_rejects_calls_instead_of_keeping_them_waiting() -> None:
    host = Host(Double())
    with pytest.raises(JobRejected, match="before it is started"):
        host(1)
    host.stop()
    with pytest.raises(BatcheryError, match="make a new one"):
        host.start()


def test_the_callers_that_wait_for_room_are_rejected_when_the_host_stops(held: tuple[Host, Narrow], gate: Gate) -> None:
    host, _ = held
    futures = fill(host)
    waiting = in_background(host.submit, 9)
    with pytest.raises(TimeoutError):
        waiting.result(0.02)
    stopping = in_background(host.stop)
    with pytest.raises(JobRejected, match="stopped"):
        waiting.result(DEADLINE_S)
    gate.open()
    stopping.result(DEADLINE_S)
    assert [future.result() for future in futures] == [2, 4, 6, 8, 10]


def test_stop_gives_up_on_a_model_that_hangs_and_fails_every_call_that_is_left(gate: Gate) -> None:
    task = Narrow(lambda _batch: gate.pass_through())
    host = Host(task, max_queue=2, options=WorkerOptions(drain_timeout_s=0.02)).start()
    futures = [host.submit(0), *fill(host)]
    gate.wait_until_reached()
    host.stop()
    errors = [future.exception(DEADLINE_S) for future in futures]
    assert all(isinstance(error, BatchFailed) for error in errors)
    assert len(set(map(id, errors))) == len(errors)


class OneAnswerAWait:
    """Stands in for the condition that a closing line waits for: each wait brings one answer."""

    def __init__(self, calls: LocalCalls) -> None:
        self.calls = calls
        self.waits: list[float] = []

    def wait(self, patience: float) -> bool:
        self.waits.append(patience)
        self.calls._unanswered.popitem()
        return True


def test_stop_is_patient_anew_after_every_answer() -> None:
    calls = LocalCalls(5)
    calls.open()
    for number in range(3):
        calls.put("double", (number,), {}, when_full="reject")
    answers = calls._answered = OneAnswerAWait(calls)  # type: ignore[assignment]  # the point of the test
    assert calls.close(7.0)
    assert answers.waits == [7.0, 7.0, 7.0]


def test_an_error_in_the_body_of_a_with_statement_stops_the_host() -> None:
    with pytest.raises(KeyError), Host(Double()) as host:
        future = host.submit(1)
        raise KeyError
    assert future.result(0) == 2
    with pytest.raises(JobRejected):
        host(1)


class Unloadable(Double):
    """Loads at the second try."""

    tries = 0

    def load(self, device: str) -> None:
        self.tries += 1
        if self.tries == 1:
            raise OSError("no weights")


def test_a_load_that_fails_is_raised_by_start_which_may_be_tried_again() -> None:
    host = Host(Unloadable())
    with pytest.raises(OSError, match="no weights"):
        host.start()
    with pytest.raises(JobRejected, match="before it is started"):
        host(1)
    with host:
        assert host(1) == 2


def test_an_engine_that_dies_fails_every_call_and_takes_no_more(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        gate.pass_through()
        raise RuntimeError("the engine's own bug")

    monkeypatch.setattr(LocalCalls, "started", die)
    host = Host(Narrow(), max_queue=2).start()
    futures = [host.submit(0), *fill(host)]
    waiting = in_background(host.submit, 9)
    gate.open()
    for future in futures:
        with pytest.raises(BatchFailed, match="engine died.*own bug"):
            future.result(DEADLINE_S)
    with pytest.raises((JobRejected, BatchFailed), match="engine died.*own bug"):
        waiting.result(DEADLINE_S).result(DEADLINE_S)
    with pytest.raises(JobRejected, match="engine died.*own bug"):
        host(1)
    host.stop()


def test_a_call_that_the_host_has_given_up_on_does_not_run(caplog: pytest.LogCaptureFixture) -> None:
    calls = LocalCalls(5)
    calls.open()
    future = calls.put("double", (1,), {}, when_full="reject")
    jobs = calls.claim({"double": Capacity(1, 1)})
    calls.fail_rest("given up")
    assert calls.drop_cancelled(jobs) == []
    assert caplog.text == ""
    with pytest.raises(BatchFailed, match="given up"):
        future.result(0)


def test_each_call_of_a_model_that_takes_time_is_answered() -> None:
    """Batches are put together ahead of their run, so that a call is asked about twice whether it is still wanted."""
    model = Double(lambda _: time.sleep(0.02))
    model.max_batch_size = 8
    with Host(model, max_queue=1000) as host:
        futures = [host.submit(number) for number in range(200)]
        assert [future.result(DEADLINE_S) for future in futures] == [2 * number for number in range(200)]


def test_a_class_is_no_task() -> None:
    with pytest.raises(TypeError, match=r"not its class: Host\(Double\(\)\)"):
        Host(Double)  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize("most", [0, -1])
def test_a_line_without_room_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match=f"max_queue = {most} is not possible"):
        Host(Double(), max_queue=most)
