"""A task that cannot work is refused where it is defined, with its name and the reason."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from batchery.configs import TASK_OPTION_NAMES, TaskOptions
from celery import Celery

from batchery import BatchTask, ListBatcher, PadBatcher


def echo(items: list[Any]) -> list[Any]:
    return items


def decorate(app: Celery, function: Callable[..., Any] = echo, **options: Any) -> BatchTask:
    """Define a task by the decorator, as an app does."""
    app.task(**{"name": "good", "base": BatchTask, **options})(function)
    task: BatchTask = app.tasks[options.get("name", "good")]
    return task


def define(**members: Any) -> type[BatchTask]:
    """Define a task by a class, as a class statement does."""
    return type("Good", (BatchTask,), {"predict": lambda self, batch: batch, **members})


def without_parameters() -> list[Any]:
    return []


# -- Refused -----------------------------------------------------------------------------------------------------------

BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"max_batch_size": 0}, "max_batch_size = 0 is not possible: it must be a whole number from 1 to 65,536"),
    ({"max_batch_tokens": "many"}, "max_batch_tokens = 'many' is not possible"),
    ({"max_wait_ms": -1}, "max_wait_ms = -1 is not possible"),
    ({"acks_late": False}, "acks_late = False is not possible: a job is acknowledged with its result"),
    ({"acks_late": None}, "acks_late = None is not possible"),
    ({"reject_on_worker_lost": False}, "reject_on_worker_lost = False is not possible: the jobs of a worker that died"),
    ({"retry_on_worker_lost": True}, "retry_on_worker_lost = True is not possible: the jobs of a worker that died"),
    ({"time_limit": 5}, "time_limit = 5 is not possible: .*Set batch_time_limit_s"),
    ({"soft_time_limit": 0.5}, "soft_time_limit = 0.5 is not possible: .*Set batch_time_limit_s"),
    ({"Request": "their:Request"}, "Request = 'their:Request' is not possible: the worker makes no request"),
    ({"Strategy": "their:Strategy"}, "Strategy = 'their:Strategy' is not possible: the worker makes no request"),
    ({"__call__": lambda self, *_: None}, "__call__ is not possible: a worker runs batches"),
    ({"preprocess_many": lambda *texts: texts}, r"\*texts cannot become a column"),
    ({"preprocess_many": without_parameters}, "preprocess_many needs a parameter"),
    ({"preprocess": int}, "the parameters of <class 'int'> cannot be read: write a function that calls it"),
]


@pytest.mark.parametrize(("options", "reason"), BAD_OPTIONS)
def test_a_bad_option_of_the_decorator_is_refused(app: Celery, options: dict[str, Any], reason: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^Task bad: {reason}"):
        decorate(app, name="bad", **options)
    assert "bad" not in app.tasks


@pytest.mark.parametrize(("options", "reason"), BAD_OPTIONS)
def test_a_bad_option_in_a_class_body_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^Task bad: {reason}"):
        define(name="bad", **options)
    with pytest.raises((TypeError, ValueError), match=f"^Task Good: {reason}"):
        define(**options)


def variadic(*texts: Any) -> Any:
    return texts


def with_more(texts: Any, **more: Any) -> Any:
    return texts


def with_keyword(texts: Any, *, lang: str = "en") -> Any:
    return texts


def bound_variadic(self: Any, *texts: Any) -> Any:
    return texts


def bound_with_keyword(self: Any, texts: Any, *, lang: Any) -> Any:
    return texts


@pytest.mark.parametrize(
    ("function", "written", "options"),
    [
        (variadic, r"\*texts: Any", {}),
        (with_more, r"\*\*more: Any", {}),
        (with_keyword, "lang: str = 'en'", {}),
        (bound_variadic, r"\*texts: Any", {"bind": True}),
        (bound_with_keyword, "lang: Any", {"bind": True}),
    ],
)
def test_a_parameter_that_cannot_become_a_column_is_refused(
    app: Celery, function: Callable[..., Any], written: str, options: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match=f"^Task bad: {written} cannot become a column of a batch. Give the function"):
        decorate(app, function, name="bad", **options)


def test_a_function_without_parameters_is_refused(app: Celery) -> None:
    with pytest.raises(TypeError, match="^Task bad: the function needs a parameter: it gets the items as a list"):
        decorate(app, without_parameters, name="bad")


def lambda_named(function: Callable[..., Any]) -> Callable[..., Any]:
    """Name a lambda, because Celery itself makes no task of a function without a proper name."""
    function.__name__ = "function"
    return function


@pytest.mark.parametrize("options", [{}, {"preprocess": str.strip}])
def test_pydantic_is_refused(app: Celery, options: dict[str, Any]) -> None:
    pytest.importorskip("pydantic")
    with pytest.raises(TypeError, match="^Task bad: pydantic=True validates one call, but this function gets whole ba"):
        decorate(app, name="bad", pydantic=True, **options)


@pytest.mark.parametrize("option", ["preprocess", "preprocess_many"])
def test_a_function_that_could_not_take_the_batch_is_refused(app: Celery, option: str) -> None:
    with pytest.raises(TypeError, match=f"^Task bad: with {option} the function gets one argument, the batch"):
        decorate(app, lambda_named(lambda texts, langs: texts), name="bad", **{option: lambda text: text})


def test_celerys_other_options_are_kept(app: Celery) -> None:
    options: dict[str, Any] = {
        "throws": (KeyError,),
        "max_retries": 7,
        "acks_on_failure_or_timeout": False,
        "reject_on_worker_lost": True,
        "retry_on_worker_lost": False,
        "time_limit": None,
        "rate_limit": "9/s",
        "ignore_result": True,
    }
    task = decorate(app, **options)
    assert {name: getattr(task, name) for name in options} == options


def test_the_apps_settings_of_what_a_task_cannot_keep_are_for_its_other_tasks(app: Celery) -> None:
    app.conf.update(task_time_limit=9, task_reject_on_worker_lost=False)
    task = decorate(app)

    class Heir(type(task)):  # type: ignore[misc]
        name = "heir"

    assert app.register_task(Heir())("a") == "a"


def test_annotations_cannot_turn_late_acknowledgement_off(app: Celery) -> None:
    app.conf.task_annotations = {"bad": {"acks_late": False}}
    with pytest.raises(TypeError, match="^Task bad: acks_late = False is not possible"):
        decorate(app, name="bad")


def test_annotations_change_options_and_a_bad_one_is_refused_with_the_tasks_name(app: Celery) -> None:
    app.conf.task_annotations = {"good": {"max_batch_size": 7}, "bad": {"max_batch_size": 0}}
    assert decorate(app).options.max_batch_size == 7
    with pytest.raises(ValueError, match="^Task bad: max_batch_size = 0"):
        decorate(app, name="bad")


def test_a_task_has_every_batching_option_with_its_default() -> None:
    assert define()().options == TaskOptions()
    assert set(define()().option_sources.values()) == {"default"}


def test_a_task_knows_where_each_option_comes_from(app: Celery) -> None:
    app.conf.task_annotations = {"good": {"max_wait_ms": 3, "max_age_ms": 10_000.0, "rate_limit": "9/s"}}

    class Base(BatchTask):
        max_wait_ms = 1
        look_ahead = 8  # said, though it is the default

    task = decorate(app, base=Base, max_batch_size=7)
    task.batch_time_limit_s = 5.0
    assert task.option_sources == dict.fromkeys(TASK_OPTION_NAMES, "default") | {
        "max_wait_ms": "task_annotations",
        "max_age_ms": "task_annotations",
        "look_ahead": "code",
        "max_batch_size": "code",
        "batch_time_limit_s": "code",
    }
    assert task.options.max_wait_ms == 3


def test_options_annotated_for_all_tasks_come_from_task_annotations(app: Celery) -> None:
    app.conf.task_annotations = {"*": {"max_batch_size": 7}}
    assert decorate(app).option_sources["max_batch_size"] == "task_annotations"


def test_options_set_on_the_task_itself_are_checked_too() -> None:
    task = define()()
    task.max_batch_size = 5
    assert task.options.max_batch_size == 5
    task.max_batch_size = 0
    with pytest.raises(ValueError, match="^Task Good: max_batch_size = 0"):
        task.options  # noqa: B018 - reading it checks it


def test_a_token_budget_needs_to_know_how_long_an_item_is(app: Celery) -> None:
    blind = decorate(app, name="blind", max_batch_tokens=100)
    with pytest.raises(
        ValueError, match="^Task blind: max_batch_tokens = 100 needs to know an item's length: give leng"
    ):
        blind.ensure_loaded("cpu")
    assert blind.device is None
    assert decorate(app, name="one", max_batch_tokens=100, length=len).ensure_loaded("cpu") == "cpu"
    assert decorate(app, name="two", max_batch_tokens=100, batcher=PadBatcher()).ensure_loaded("cpu") == "cpu"


def test_a_batcher_may_be_made_while_the_model_loads() -> None:
    class Late(BatchTask):
        max_batch_tokens = 100

        def load(self, device: str) -> None:
            self.batcher = PadBatcher(padding=7)

    assert Late().ensure_loaded("cpu") == "cpu"


IMPOSSIBLE_LENGTHS = [
    -3,
    2**31,
    2**63,
    10**5000,
    -(10**5000),
    1e30,
    math.inf,
    -math.inf,
    math.nan,
    True,
    False,
    "three",
]
IMPOSSIBLE_LENGTHS += [np.int64(2**62), np.uint64(2**63), np.float64("nan"), np.float64("inf"), np.float32(-1)]


@pytest.mark.parametrize("length", IMPOSSIBLE_LENGTHS, ids=lambda length: type(length).__name__)
def test_a_length_that_no_item_can_have_is_refused(length: Any) -> None:
    task = define(name="odd", length=lambda _: length)()
    with pytest.raises(ValueError, match="^Task odd: an item's length is .*: it must be from 0 to 2,147,483,647"):
        task.item_length("an item")


@pytest.mark.parametrize("length", [3, 3.0, np.int64(3), np.uint8(3), np.float32(3), torch.tensor(3)])
def test_a_length_may_be_a_number_of_any_type_and_becomes_an_int(length: Any) -> None:
    counted = define(length=lambda _: length)().item_length("an item")
    assert type(counted) is int
    assert counted == 3


def test_a_task_without_a_model_says_so_when_it_is_called() -> None:
    class Empty(BatchTask):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty must define predict\(self, batch\)"):
        Empty()("text")


# -- Functions as options ----------------------------------------------------------------------------------------------


class Counter:
    """An object that can be called."""

    def __call__(self, text: str) -> int:
        return len(text)


def count(text: str) -> int:
    return len(text)


def count_with(extra: int, text: str) -> int:
    return len(text) + extra


def count_self(self: str) -> int:
    return len(self)


def named(value: object) -> str:
    """What a value is, without its address: every process then gives a test the same name."""
    return re.sub(r" at 0x\w+", "", repr(value))


LENGTHS = [len, count, lambda text: len(text), str.__len__, Counter(), functools.partial(count_with, 0)]


@pytest.mark.parametrize("length", LENGTHS, ids=named)
def test_a_function_given_as_an_option_does_not_turn_into_a_method(app: Celery, length: Any) -> None:
    assert decorate(app, length=length).item_length("four") == 4
    assert define(length=length)().item_length("four") == 4
    assert define(length=staticmethod(length))().item_length("four") == 4


def test_a_function_given_as_an_option_may_call_its_parameter_self(app: Celery) -> None:
    assert decorate(app, length=count_self).item_length("four") == 4


def test_a_method_stays_a_method() -> None:
    class Good(BatchTask):
        factor = 3

        def length(self, text: str) -> int:
            return len(text) * self.factor

        def postprocess(self, output: str) -> str:
            return output * self.factor

        @classmethod
        def preprocess(cls, text: str) -> str:
            return text * cls.factor

        def predict(self, batch: list[str]) -> list[str]:
            return batch

    assert Good().item_length("four") == 12
    assert Good()("a") == "aaa" * 3
    assert Good().run_batch(["a", "b"]) == ["aaa" * 3, "bbb" * 3]


@pytest.mark.parametrize("bind", [False, True])
def test_every_hook_can_be_given_to_the_decorator(app: Celery, bind: bool) -> None:
    function = lambda_named((lambda self, items: items) if bind else (lambda items: items))
    options = {"preprocess": str.strip, "postprocess": lambda text: text + "!", "length": len, "bind": bind}
    task = decorate(app, function, **options)
    assert task.run_batch([" a ", "b "]) == ["a!", "b!"]
    assert task.runs_user_code_per_item


@pytest.mark.parametrize(
    ("options", "own_code", "measures"),
    [
        ({}, False, False),
        ({"length": len}, False, True),
        ({"length": count}, True, True),
        ({"preprocess": count}, True, False),
        ({"preprocess_many": echo}, True, False),
        ({"batcher": PadBatcher()}, False, True),
        ({"batcher": ListBatcher()}, False, False),
    ],
)
def test_a_task_knows_whether_preparing_an_item_runs_code_or_measures_it(
    app: Celery, options: dict[str, Any], own_code: bool, measures: bool
) -> None:
    task = decorate(app, **options)
    assert (task.runs_user_code_per_item, task.measures_items) == (own_code, measures)


# -- Whose parameters the call has -------------------------------------------------------------------------------------


def pair(text: str, lang: str = "en") -> tuple[str, str]:
    return text, lang


def pair_method(self: BatchTask, text: str, lang: str = "en") -> tuple[str, str]:
    return text, lang


def run_pairs(self: BatchTask, texts: list[str], langs: str = "en") -> list[tuple[str, str]]:
    return list(zip(texts, langs, strict=True))


def pairs_with_default(texts: list[str], langs: str = "en") -> list[tuple[str, str]]:
    return list(zip(texts, langs, strict=True))


@pytest.mark.parametrize(
    "members",
    [
        {"preprocess": pair},
        {"preprocess": pair_method},
        {"preprocess": staticmethod(pair)},
        {"preprocess": lambda text, lang="en": (text, lang)},
        {"preprocess": functools.partial(pair)},
        {"preprocess_many": pairs_with_default},
        {"run": run_pairs, "predict": BatchTask.predict},
    ],
    ids=lambda members: named(next(iter(members.items()))),
)
def test_a_class_has_the_parameters_of_preprocess_or_of_what_gets_the_columns(members: dict[str, Any]) -> None:
    good = define(**members)
    task = good()
    assert task("a", "de") == ("a", "de")
    assert task("a") == ("a", "en")
    assert task.run_batch(["a", ("b", "de")]) == [("a", "en"), ("b", "de")]
    good.__header__("a", "de")
    for wrong in ((), ("a", "b", "c")):
        with pytest.raises(TypeError):
            good.__header__(*wrong)


def test_a_decorated_function_has_its_own_parameters(app: Celery) -> None:
    task = decorate(app, pairs_with_default)
    assert task.run_batch(["a", ("b", "de")]) == [("a", "en"), ("b", "de")]


@pytest.mark.parametrize("option", [{"preprocess": pair}, {"preprocess_many": pairs_with_default}])
def test_a_decorated_function_with_preprocessing_gets_the_batch(app: Celery, option: dict[str, Any]) -> None:
    task = decorate(app, **option)
    assert task.run_batch(["a", ("b", "de")]) == [("a", "en"), ("b", "de")]
    with pytest.raises(TypeError):
        task.__header__("a", "b", "c")


# -- Inheritance -------------------------------------------------------------------------------------------------------


class Base(BatchTask):
    """What tasks have in common."""

    max_batch_size = 7
    loaded_on: str | None = None

    def load(self, device: str) -> None:
        self.loaded_on = device

    def preprocess(self, text: str, suffix: str = "") -> str:
        return text + suffix


class Upper(Base):
    """Inherits preprocess, and so the parameters."""

    def predict(self, batch: list[str]) -> list[str]:
        return [text.upper() for text in batch]


class Longer(Upper):
    """Has parameters of its own."""

    max_batch_size = 9

    def preprocess(self, text: str, times: int) -> str:  # type: ignore[override]  # the point of the test
        return text * times


class Shouting:
    """A mixin, that knows nothing of tasks."""

    def preprocess(self, text: str) -> str:
        return text + "!"


class Mixed(Shouting, Upper):  # type: ignore[misc]  # the point of the test
    """Has the mixin's parameters."""


def test_a_class_inherits_hooks_options_and_parameters() -> None:
    task = Upper()
    assert task("a", suffix="b") == "AB"
    assert task.options.max_batch_size == 7
    assert task.loaded_on == task.device == "cpu"


def test_a_subclass_may_change_the_parameters() -> None:
    assert Longer()("a", 3) == "AAA"
    assert Longer().options.max_batch_size == 9
    with pytest.raises(TypeError):
        Longer.__header__("a")
    Upper.__header__("a")


def test_a_mixin_may_change_the_parameters() -> None:
    assert Mixed()("a") == "A!"
    with pytest.raises(TypeError):
        Mixed.__header__("a", "b")


def test_a_decorated_function_has_the_parameters_of_its_bases_preprocess(app: Celery) -> None:
    @app.task(base=Base, name="tripled")
    def tripled(texts: list[str]) -> list[str]:
        return [text * 3 for text in texts]

    assert tripled("a", suffix="b") == "ababab"
    assert tripled.options.max_batch_size == 7
    with pytest.raises(TypeError):
        tripled.delay("a", "b", "c")


def test_tasks_of_one_class_are_loaded_apart() -> None:
    one, other = Upper(), Upper()
    one.ensure_loaded("cpu")
    assert (one.loaded_on, other.loaded_on) == ("cpu", None)
