"""However a batch fails, each job gets exactly one outcome, and one job's failure is its own."""

import gc
import math
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from batchery.batchers.isolation import is_out_of_memory, run_isolated
from batchery.batchers.job import Batch, Job, Outcome
from hypothesis import given, settings
from hypothesis import strategies as st

Forward = Callable[[Sequence[Any]], list[Any]]
property_test = settings(deadline=None, max_examples=150)


def batch_of(count: int) -> Batch:
    """Jobs whose items are their numbers."""
    return Batch("task", [Job(str(n), "task", (), {}, None, 0.0, n, item=n) for n in range(count)], "full")


def outcomes_of(batch: Batch, forward: Forward) -> list[Outcome]:
    return [outcome for part in run_isolated(batch, forward) for outcome in part]


class Model:
    """Squares its items, and fails for every batch with a bad one."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.bad = set(bad)
        self.runs: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[Any]:
        self.runs.append(list(items))
        if self.bad.intersection(items):
            raise ValueError(f"bad: {sorted(self.bad.intersection(items))}")
        return [item**2 for item in items]


def test_a_sound_batch_runs_once() -> None:
    model = Model()
    batch = batch_of(5)
    outcomes = outcomes_of(batch, model)
    assert [outcome.value for outcome in outcomes] == [0, 1, 4, 9, 16]
    assert model.runs == [[0, 1, 2, 3, 4]]
    assert all(outcome.batch is batch and outcome.error is None for outcome in outcomes)


@property_test
@given(st.integers(1, 40), st.data())
def test_every_job_gets_one_outcome_whichever_jobs_are_bad(count: int, data: Any) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    model = Model(list(bad))
    outcomes = {outcome.job.item: outcome for outcome in outcomes_of(batch_of(count), model)}
    assert sorted(outcomes) == list(range(count))
    for item, outcome in outcomes.items():
        if item in bad:
            assert str(outcome.error) == f"bad: [{item}]"
        else:
            assert (outcome.error, outcome.value) == (None, item**2)
    assert sum(len(part) for part in run_isolated(batch_of(count), model)) == count


@property_test
@given(st.integers(1, 64), st.data())
def test_isolating_costs_two_more_runs_for_each_halving_and_bad_job(count: int, data: Any) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    model = Model(list(bad))
    outcomes_of(batch_of(count), model)
    assert len(model.runs) <= 1 + len(bad) * 2 * math.ceil(math.log2(count))
    assert len(model.runs) <= 2 * count - 1


@pytest.mark.parametrize("bad", range(32))
def test_one_bad_job_among_32_costs_at_most_11_more_runs(bad: int) -> None:
    model = Model([bad])
    outcomes_of(batch_of(32), model)
    assert len(model.runs) <= 12


def test_parts_are_yielded_in_order_as_soon_as_they_are_done() -> None:
    model = Model([3])
    parts = run_isolated(batch_of(8), model)
    assert [outcome.job.item for outcome in next(parts)] == [0, 1]
    assert len(model.runs) == 3
    assert [outcome.job.item for part in parts for outcome in part] == [2, 3, 4, 5, 6, 7]


def test_an_exception_instance_in_a_slot_fails_that_job_alone_and_nothing_runs_again() -> None:
    bad = KeyError("this one")
    runs = []

    def forward(items: Sequence[int]) -> list[Any]:
        runs.append(items)
        return [bad if item == 1 else item for item in items]

    outcomes = outcomes_of(batch_of(3), forward)
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [(0, None), (None, bad), (2, None)]
    assert len(runs) == 1


@pytest.mark.parametrize("difference", [-1, 1])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_a_wrong_number_of_outputs_is_an_error_for_all_and_never_a_shift(count: int, difference: int) -> None:
    outcomes = outcomes_of(batch_of(count), lambda items: [0] * (len(items) + difference))
    assert len(outcomes) == count
    assert all(isinstance(outcome.error, ValueError) and outcome.value is None for outcome in outcomes)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), StopIteration(), GeneratorExit(), MemoryError()])
def test_whatever_the_model_raises_is_the_bad_jobs_outcome(error: BaseException) -> None:
    def forward(items: Sequence[int]) -> list[Any]:
        if 2 in items:
            raise error
        return list(items)

    outcomes = {outcome.job.item: outcome for outcome in outcomes_of(batch_of(4), forward)}
    assert outcomes.pop(2).error is error
    assert [outcome.value for outcome in outcomes.values()] == [0, 1, 3]


def test_an_empty_batch_has_no_outcomes() -> None:
    assert outcomes_of(batch_of(0), Model([0])) == []


class Hungry:
    """Runs out of memory for more than one item, and records which arrays are alive at later runs."""

    def __init__(self, raise_it: Callable[[np.ndarray[Any, Any]], Any]) -> None:
        self.raise_it = raise_it
        self.held: list[weakref.ref[Any]] = []
        self.alive_at_a_later_run: list[bool] = []

    def __call__(self, items: Sequence[int]) -> list[Any]:
        self.alive_at_a_later_run += [array() is not None for array in self.held]
        array = np.zeros(len(items))
        self.held.append(weakref.ref(array))
        if len(items) > 1 or items[0] == 3:
            self.raise_it(array)
        return list(items)


def fail_at_once(array: np.ndarray[Any, Any]) -> None:
    raise MemoryError(f"{array.size} cells")


def fail_in_a_chain(array: np.ndarray[Any, Any]) -> None:
    try:
        inner = array.view()
        raise MemoryError(f"{inner.size} cells")
    except MemoryError as exc:
        raise RuntimeError("CUDA out of memory.") from exc


def fail_while_handling(array: np.ndarray[Any, Any]) -> None:
    try:
        fail_at_once(array)
    except MemoryError:
        raise RuntimeError("CUDA out of memory.") from None


def fail_and_keep_the_error(array: np.ndarray[Any, Any]) -> None:
    """The error is in a cycle: its traceback's frame has it as a local variable."""
    kept = None
    try:
        fail_at_once(array)
    except MemoryError as exc:
        kept = exc
    raise kept or AssertionError


@pytest.mark.parametrize("raise_it", [fail_at_once, fail_in_a_chain, fail_while_handling, fail_and_keep_the_error])
def test_the_arrays_of_a_failed_attempt_are_gone_before_its_halves_run(raise_it: Callable[[Any], Any]) -> None:
    model = Hungry(raise_it)
    gc.disable()
    try:
        outcomes = outcomes_of(batch_of(8), model)
    finally:
        gc.enable()
    assert [outcome.job.item for outcome in outcomes if outcome.error is not None] == [3]
    assert len(model.held) == 16  # 15 parts, and the single job once more
    assert not any(model.alive_at_a_later_run)


def test_a_failed_jobs_traceback_still_says_where_it_failed() -> None:
    model = Hungry(fail_in_a_chain)
    (outcome,) = [outcome for outcome in outcomes_of(batch_of(4), model) if outcome.error is not None]
    text = "".join(traceback.format_exception(outcome.error))
    assert "in fail_in_a_chain" in text
    assert 'raise RuntimeError("CUDA out of memory.") from exc' in text
    assert "The above exception was the direct cause" in text


# -- Classes of errors -------------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    """Nothing can be learned from it."""

    args: Any = property(lambda _: 1 / 0)

    def __str__(self) -> str:
        raise ValueError("this error cannot be printed")

    def __bool__(self) -> bool:
        raise ValueError("this error is neither true nor false")


def error_of(module: str, name: str, base: type[Exception], text: str) -> Exception:
    """An error of a package that is not installed here."""
    kind: type[Exception] = type(name, (base,), {"__module__": module})
    return kind(text)


ORT = "onnxruntime.capi.onnxruntime_pybind11_state"

OUT_OF_MEMORY: list[Exception] = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    error_of("torch.cuda", "OutOfMemoryError", RuntimeError, "CUDA out of memory."),
    error_of("cupy.cuda.memory", "OutOfMemoryError", MemoryError, "Out of memory allocating 512 bytes"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GiB)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    error_of(
        ORT,
        "RuntimeException",
        Exception,
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code "
        "returned while running Add node.\nFailed to allocate memory for requested buffer of size 4\n",
    ),
    error_of("jaxlib.xla_extension", "XlaRuntimeError", RuntimeError, "RESOURCE_EXHAUSTED: Out of memory"),
    error_of("jax.errors", "JaxRuntimeError", RuntimeError, "RESOURCE_EXHAUSTED: Out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_out_of_memory_is_recognised_by_class_and_by_how_the_classes_of_frameworks_begin(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_the_error_that_torch_raises_on_the_cpu_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


#: Texts of callers, which a model may quote in its error.
HOSTILE = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: out of memory",
    "CUDA out of memory.",
    "MPS backend out of memory",
    "[enforce fail at alloc_cpu.cpp:127]",
    "DefaultCPUAllocator: can't allocate memory",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "RESOURCE_EXHAUSTED: Out of memory",
    "Failed to allocate memory for requested buffer of size 4",
    "illegal instruction",
    "out of memory",
]


class OutOfMemoryError(RuntimeError):
    """A user's own."""


class OwnRuntimeError(RuntimeError):
    """A user's own."""


QUOTING: list[Callable[[str], Exception]] = [
    KeyError,
    ValueError,
    OSError,
    NotImplementedError,
    RecursionError,
    OutOfMemoryError,
    OwnRuntimeError,
    Unspeakable,
    lambda text: RuntimeError(Unspeakable(text)),
    lambda text: RuntimeError(f"no such word: {text}"),
    lambda text: RuntimeError(f"'{text}'"),
    lambda text: torch.AcceleratorError(f"CUDA error: invalid argument ({text})"),
    lambda text: error_of(ORT, "RuntimeException", Exception, f"[ONNXRuntimeError] : 6 : no such word: {text}!"),
    lambda text: error_of("jaxlib.xla_extension", "XlaRuntimeError", RuntimeError, f"INVALID_ARGUMENT: {text}"),
]


def raised_from(error: Exception, text: str) -> Exception:
    error.__cause__ = RuntimeError(text)
    error.__cause__.__cause__ = Unspeakable(text)
    return error


def raised_while_handling(error: Exception, text: str) -> Exception:
    error.__context__ = MemoryError(text)
    return error


@pytest.mark.parametrize("led_to", [lambda error, _: error, raised_from, raised_while_handling])
@pytest.mark.parametrize("quoting", QUOTING)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_callers_text_in_an_error_decides_nothing(
    text: str, quoting: Callable[[str], Exception], led_to: Callable[[Exception, str], Exception]
) -> None:
    error = led_to(quoting(text), text)
    assert not is_out_of_memory(error)
    freed: list[Sequence[Job]] = []

    def forward(items: Sequence[int]) -> list[Any]:
        if 2 in items:
            raise error
        return list(items)

    outcomes = [outcome for part in run_isolated(batch_of(4), forward, freed.append) for outcome in part]
    assert [outcome.value for outcome in outcomes if outcome.error is None] == [0, 1, 3]
    assert [outcome.error for outcome in outcomes if outcome.error is not None] == [error]
    assert freed == []


def test_a_device_that_fails_when_it_is_asked_ends_the_batch_with_its_own_error() -> None:
    model, asked = Model([2]), list[int]()

    def check_device() -> None:
        asked.append(len(model.runs))
        if len(asked) == 2:
            raise OSError("the device is lost")

    parts = run_isolated(batch_of(4), model, check_device=check_device)
    assert [outcome.job.item for outcome in next(parts)] == [0, 1]
    with pytest.raises(OSError, match="the device is lost") as caught:
        next(parts)
    assert str(caught.value.__context__) == "bad: [2]"
    assert asked == [1, 3], "a device is asked after each attempt that failed, and only then"
