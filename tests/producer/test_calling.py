"""Calling a task: here and now, as one batch, through Celery, and eagerly."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery._state
import numpy as np
import pytest
import torch
from batchery.producer import ENQUEUED_AT
from celery import Celery, chain, group, shared_task, signals

from batchery import BatchTask, OutputMismatch, PadBatcher, StackBatcher


class Embed(BatchTask):
    """A model of the usual kind: items to arrays, arrays to a batch, one array back."""

    name = "embed"
    batcher = PadBatcher(padding=0)

    def preprocess(self, text: str, scale: float = 1.0) -> Any:
        if not text:
            raise ValueError("no text")
        return np.array([ord(character) for character in text]) * scale

    def predict(self, batch: Any) -> Any:
        return batch.sum(axis=1)


@pytest.fixture
def embed(app: Celery) -> Embed:
    task: Embed = app.register_task(Embed())
    return task


@pytest.fixture
def add(app: Celery) -> BatchTask:
    @app.task(base=BatchTask, name="add")
    def add(ones: list[int], others: list[int], offset: list[int] = 100) -> list[int]:  # type: ignore[assignment]
        """Each parameter is a column; a default is one call's."""
        return [one + other + more for one, other, more in zip(ones, others, offset, strict=True)]

    task: BatchTask = add
    return task


@pytest.fixture
def published() -> Iterator[list[dict[str, Any]]]:
    """Headers and body of every message that was published."""
    messages: list[dict[str, Any]] = []

    def note(body: Any = None, headers: Any = None, **_: Any) -> None:
        messages.append({"body": body, **headers})

    signals.before_task_publish.connect(note)
    yield messages
    signals.before_task_publish.disconnect(note)


# -- Here and now ------------------------------------------------------------------------------------------------------


def test_calling_a_task_runs_a_batch_of_one(embed: Embed, add: BatchTask) -> None:
    assert embed("ab") == 97 + 98
    assert embed("ab", scale=2) == embed(text="ab", scale=2) == 2 * (97 + 98)
    assert add(1, 2) == 103
    assert add(1, others=2, offset=0) == 3


def test_a_direct_call_raises_its_error(embed: Embed) -> None:
    with pytest.raises(ValueError, match="no text"):
        embed("")
    with pytest.raises(TypeError):
        embed("a", 1, 2)


def test_run_batch_runs_one_batch_and_returns_a_result_for_each_item_in_order(embed: Embed, add: BatchTask) -> None:
    assert embed.run_batch(["b", "aa", ("c", 2.0)]) == [98, 194, 198]
    assert add.run_batch([(1, 2), (3, 4, 0)]) == [103, 7]
    assert embed.run_batch(text for text in "ab") == [97, 98]


def test_run_batch_returns_an_exception_in_the_place_of_each_failed_item(embed: Embed, add: BatchTask) -> None:
    first, bad, last = embed.run_batch(["a", "", "b"])
    assert (first, last) == (97, 98)
    assert isinstance(bad, ValueError)
    wrong, sound = add.run_batch([(1,), (1, 2)])
    assert isinstance(wrong, TypeError)
    assert sound == 103


def test_run_is_the_raw_function_of_the_decorator_form(add: Any) -> None:
    assert add.run([1, 2], [3, 4], [0, 0]) == [4, 6]


def test_an_exception_in_an_output_slot_fails_that_item_alone(app: Celery) -> None:
    @app.task(base=BatchTask)
    def check(numbers: list[int]) -> list[Any]:
        return [ValueError(f"{number} is odd") if number % 2 else number for number in numbers]

    assert check(2) == 2
    with pytest.raises(ValueError, match="3 is odd"):
        check(3)
    one, two = check.run_batch([1, 2])
    assert (str(one), two) == ("1 is odd", 2)


def test_too_few_results_are_an_error(app: Celery) -> None:
    @app.task(base=BatchTask)
    def drop(items: list[int]) -> list[int]:
        return items[1:]

    with pytest.raises(OutputMismatch, match="1 outputs for 2 items"):
        drop.run_batch([1, 2])


def test_columns_may_be_arrays(app: Celery) -> None:
    @app.task(base=BatchTask, batcher=StackBatcher())
    def dot(ones: Any, others: Any) -> Any:
        assert ones.shape == others.shape == (len(ones), 2)
        return (ones * others).sum(axis=1)

    assert dot.run_batch([([1, 2], [3, 4]), ([0, 1], [5, 6])]) == [11, 6]


def test_a_bound_function_gets_the_task_first(app: Celery) -> None:
    @app.task(base=BatchTask, bind=True, max_batch_size=5)
    def name_it(self: BatchTask, items: list[int], factors: list[int]) -> list[Any]:
        return [(self.name, self.max_batch_size, item * by) for item, by in zip(items, factors, strict=True)]

    assert name_it(2, 3) == (name_it.name, 5, 6)
    assert name_it.run_batch([(1, 2)]) == [(name_it.name, 5, 2)]
    with pytest.raises(TypeError):
        name_it.delay(1)


@pytest.mark.parametrize(
    ("output", "result"),
    [
        (np.array([1.5, 2.5]), [1.5, 2.5]),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (np.float32(0.5), 0.5),
        (np.array([1.5], np.float16), [1.5]),
        (torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), [[1.5, -2.0]]),
        (torch.ones(1, dtype=torch.float16, requires_grad=True), [1.0]),
        (np.array(2.5), 2.5),
        (torch.tensor(3), 3),
        (np.zeros((0, 3)), []),
        (np.zeros((2, 0)), [[], []]),
        (np.arange(3, dtype=">i4"), [0, 1, 2]),
        (np.array([True, False]), [True, False]),
        ({"ids": np.arange(2), "more": (torch.ones(1), [np.float16(1)])}, {"ids": [0, 1], "more": ([1.0], [1.0])}),
        ("text", "text"),
        ({"a": 1}, {"a": 1}),
    ],
)
def test_arrays_in_a_result_become_lists_and_numbers_for_json(app: Celery, output: Any, result: Any) -> None:
    @app.task(base=BatchTask)
    def constant(items: list[int]) -> list[Any]:
        return [output for _ in items]

    answer = constant(1)
    assert answer == result
    assert type(answer) is type(result)


@pytest.mark.parametrize(
    "output", [np.ones(1, np.complex64), torch.ones(1, dtype=torch.complex64), {"a": np.complex64(1)}]
)
def test_complex_results_are_refused_because_json_has_no_such_numbers(app: Celery, output: Any) -> None:
    @app.task(base=BatchTask)
    def constant(items: list[int]) -> list[Any]:
        return [output for _ in items]

    with pytest.raises(
        TypeError, match='complex64: return its real and imaginary parts, or set result_serializer = "ba'
    ):
        constant(1)


@pytest.mark.parametrize(
    "output", [np.ones(2, np.complex64), torch.ones(2, dtype=torch.bfloat16), {"ids": np.arange(2)}, "text", 1.5]
)
def test_results_stay_arrays_if_the_result_serializer_carries_arrays(app: Celery, output: Any) -> None:
    app.conf.result_serializer = "batchery"

    @app.task(base=BatchTask)
    def constant(items: list[int]) -> list[Any]:
        return [output for _ in items]

    assert constant(1) is output
    assert constant.run_batch([1, 2])[1] is output


# -- preprocess_many ---------------------------------------------------------------------------------------------------


class Vectorised(BatchTask):
    """Prepares many items at once."""

    def __init__(self) -> None:
        self.prepared: list[list[Any]] = []

    def preprocess_many(self, numbers: list[int], factors: Sequence[int] = 10) -> list[Any]:  # type: ignore[assignment]
        self.prepared.append(numbers)
        if 13 in numbers:
            raise ValueError("13 brings bad luck")
        return [ValueError("zero") if not n else n * by for n, by in zip(numbers, factors, strict=True)]

    def predict(self, batch: list[int]) -> list[int]:
        return [item + 1 for item in batch]


def test_many_items_are_prepared_at_once_with_a_list_for_each_parameter() -> None:
    task = Vectorised()
    assert task.run_batch([1, (2, 3)]) == [11, 7]
    assert task.prepared == [[1, 2]]
    assert task(4) == 41


def test_preprocess_many_may_return_an_exception_in_the_place_of_an_item() -> None:
    one, zero, two = Vectorised().run_batch([1, 0, 2])
    assert (one, str(zero), two) == (11, "zero", 21)
    with pytest.raises(ValueError, match="zero"):
        Vectorised()(0)


def test_preprocess_many_that_raises_is_repeated_item_by_item() -> None:
    task = Vectorised()
    one, bad, two = task.run_batch([1, 13, 2])
    assert (one, str(bad), two) == (11, "13 brings bad luck", 21)
    assert task.prepared == [[1, 13, 2], [1], [13], [2]]


def test_calls_with_wrong_arguments_are_left_out_when_many_are_prepared() -> None:
    task = Vectorised()
    one, wrong = task.run_batch([1, (1, 2, 3)])
    assert one == 11
    assert isinstance(wrong, TypeError)
    assert task.prepared == [[1]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_preprocess_many_with_a_wrong_number_of_items_fails_every_call(app: Celery, count: int) -> None:
    @app.task(base=BatchTask, preprocess_many=lambda numbers: [0] * count)
    def echo(items: list[int]) -> list[int]:
        return items

    errors = echo.run_batch([1, 2])
    assert [str(error) for error in errors] == [
        f"preprocess_many returned {count} items for 2 calls; one for each is expected."
    ] * 2
    assert errors[0] is not errors[1]


# -- Loading -----------------------------------------------------------------------------------------------------------


class Loading(BatchTask):
    """Counts its loads, and calls itself to warm up."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.error: Exception | None = None

    def load(self, device: str) -> None:
        self.loads.append(device)
        if self.error is not None:
            raise self.error
        assert self.device == device
        assert self.run_batch(["warm", "up"]) == ["warm", "up"]

    def predict(self, batch: list[str]) -> list[str]:
        return batch


def test_a_model_is_loaded_once_and_may_warm_itself_up_while_it_loads() -> None:
    task = Loading()
    assert task("a") == "a"
    assert task("b") == "b"
    assert task.loads == ["cpu"]
    assert task.ensure_loaded("cuda") == "cpu"


def test_threads_that_need_a_model_at_once_load_it_once() -> None:
    task, barrier = Loading(), threading.Barrier(8)

    def load(_: int) -> str:
        barrier.wait(timeout=20)
        return task.ensure_loaded("cpu")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(load, range(8))) == {"cpu"}
    assert task.loads == ["cpu"]


def test_a_load_that_failed_is_tried_again() -> None:
    task = Loading()
    task.error = OSError("no weights")
    with pytest.raises(OSError, match="no weights"):
        task("a")
    assert task.device is None
    task.error = None
    assert task("a") == "a"
    assert task.loads == ["cpu", "cpu"]


# -- Through Celery ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), ("a", 1.0, "more")])
def test_wrong_arguments_are_refused_at_the_caller(embed: Embed, args: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="preprocess"):
        embed.delay(*args)


@pytest.mark.parametrize("args", [(1,), (1, 2, 3, 4)])
def test_wrong_arguments_are_refused_at_the_caller_of_a_decorated_function(
    add: BatchTask, args: tuple[Any, ...]
) -> None:
    with pytest.raises(TypeError, match="add"):
        add.delay(*args)
    with pytest.raises(TypeError, match="no_such"):
        add.delay(1, 2, no_such=3)


def test_a_preprocess_without_a_name_of_its_own_is_checked_too(app: Celery) -> None:
    @app.task(base=BatchTask, preprocess=lambda text, *, lang="en": (text, lang))
    def echo(items: list[Any]) -> list[Any]:
        return items

    assert echo("a", lang="de") == ("a", "de")
    with pytest.raises(TypeError):
        echo.delay("a", "de")


def test_typing_off_lets_every_argument_through(app: Celery, published: list[dict[str, Any]]) -> None:
    @app.task(base=BatchTask, typing=False)
    def echo(items: list[Any]) -> list[Any]:
        return items

    echo.delay(1, 2, 3)
    assert len(published) == 1


def test_a_message_is_celerys_own_and_says_when_it_was_sent(embed: Embed, published: list[dict[str, Any]]) -> None:
    result = embed.apply_async(("a",), {"scale": 2}, "an-id", headers={"mine": 1})
    (message,) = published
    assert (message["task"], message["id"], result.id) == ("embed", "an-id", "an-id")
    assert message["body"][:2] == (("a",), {"scale": 2})
    assert message["mine"] == 1
    assert isinstance(message[ENQUEUED_AT], float)


def test_a_callers_own_time_of_sending_is_kept(embed: Embed, published: list[dict[str, Any]]) -> None:
    embed.apply_async(("a",), headers={ENQUEUED_AT: 12.5})
    assert published[0][ENQUEUED_AT] == 12.5


def test_a_shared_task_serves_every_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery._state, "_on_app_finalizers", set())
    monkeypatch.setattr(celery._state, "_apps", type(celery._state._apps)())

    @shared_task(base=BatchTask, name="shared", length=len, max_batch_size=3)
    def shared(texts: list[str]) -> list[str]:
        return [text.upper() for text in texts]

    apps = [Celery(f"app{number}", broker="memory://", set_as_current=False) for number in range(2)]
    tasks = [one.tasks["shared"] for one in apps]
    assert tasks[0] is not tasks[1]
    assert [task("a") for task in tasks] == ["A", "A"]
    assert [task.options.max_batch_size for task in tasks] == [3, 3]
    assert tasks[0].item_length("abc") == 3


# -- Eagerly -----------------------------------------------------------------------------------------------------------


def test_apply_runs_a_task_eagerly(embed: Embed, add: BatchTask) -> None:
    assert embed.apply(("ab",), {"scale": 2}).get() == 390
    assert add.apply((1, 2)).get() == 103
    failed = embed.apply(("",))
    assert failed.state == "FAILURE"
    with pytest.raises(ValueError, match="no text"):
        failed.get()


def test_a_task_may_always_be_eager(app: Celery, embed: Embed, add: BatchTask) -> None:
    app.conf.task_always_eager = True
    assert embed.delay("a").get() == 97
    assert group(embed.s("a"), embed.s("b")).apply_async().get() == [97, 98]
    assert chain(embed.s("a"), add.s(1)).apply_async().get() == 97 + 1 + 100
    with pytest.raises(TypeError):
        embed.delay("a", "b", "c")


class Fails:
    """Fails as often as it is told."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise ConnectionError("not yet")


def retrying(app: Celery, fails: Fails, **options: Any) -> BatchTask:
    def shaky(items: list[int]) -> list[int]:
        fails()
        return items

    app.task(base=BatchTask, name="shaky", autoretry_for=(ConnectionError,), default_retry_delay=0, **options)(shaky)
    task: BatchTask = app.tasks["shaky"]
    assert task.run is shaky
    return task


def test_autoretry_for_does_not_wrap_the_batch(app: Celery) -> None:
    fails = Fails(1)
    task = retrying(app, fails)
    with pytest.raises(ConnectionError):
        task.run_batch([1, 2])
    assert fails.calls == 1
    assert task.run_batch([1, 2]) == [1, 2]


def test_autoretry_for_retries_each_call_as_in_celery_without_an_engine(app: Celery) -> None:
    fails = Fails(2)
    assert retrying(app, fails).apply((5,)).get() == 5
    assert fails.calls == 3


def test_autoretry_for_gives_up_as_in_celery(app: Celery) -> None:
    fails = Fails(10)
    result = retrying(app, fails, max_retries=2).apply((5,))
    assert result.state == "FAILURE"
    assert isinstance(result.result, ConnectionError)
    assert fails.calls == 3


def test_a_direct_call_raises_an_error_that_autoretry_for_lists(app: Celery) -> None:
    fails = Fails(1)
    task = retrying(app, fails)
    with pytest.raises(ConnectionError, match="not yet"):
        task(5)
    assert task(5) == 5
