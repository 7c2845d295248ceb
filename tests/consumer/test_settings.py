"""What a configuration makes of an app's tasks, before a worker starts and while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from batchery.configs import TASK_OPTION_NAMES, WorkerOptions
from batchery.configs.configuration import ConfigurationError, load_configuration
from batchery.worker.consumer import control
from batchery.worker.consumer.settings import RUNTIME_OPTIONS, Settings
from batchery.worker.consumer.setup import configuration_of
from celery import Celery

from batchery import BatchTask, setup


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app with the batch tasks `search.embed` (of which the code says something) and `classify`."""
    app = Celery("settings", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_annotations = {"search.embed": {"max_wait_ms": 3, "max_age_ms": 900}}

    @app.task(base=BatchTask, name="search.embed", shared=False, length=len, max_batch_size=64, look_ahead=2)
    def embed(texts: list[str]) -> list[str]:
        return texts

    @app.task(base=BatchTask, name="classify", shared=False)
    def classify(texts: list[str]) -> list[str]:
        return texts

    @app.task(name="plain", shared=False)
    def plain(text: str) -> str:
        return text

    app.finalize()
    yield app
    app.close()


def apply(app: Celery, tmp_path: Path, text: str = "", **environ: str) -> Settings:
    """The settings that a file with this text makes."""
    (tmp_path / "c.toml").write_text(text)
    return Settings(app, load_configuration(tmp_path / "c.toml", environ))


def problems(app: Celery, tmp_path: Path, text: str = "", **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as refusal:
        apply(app, tmp_path, text, **environ)
    return [problem.replace(f"{tmp_path}/", "") for problem in refusal.value.problems]


# --- Precedence -------------------------------------------------------------------------------------------------------


def test_the_defaults_of_a_file_hold_where_code_and_annotations_say_nothing(app: Celery, tmp_path: Path) -> None:
    settings = apply(app, tmp_path, "[defaults]\nmax_batch_size = 5\nmax_wait_ms = 5\nbatch_time_limit_s = 5")
    embed, classify = (app.tasks[name].options for name in ("search.embed", "classify"))
    assert (embed.max_batch_size, embed.max_wait_ms, embed.batch_time_limit_s) == (64, 3, 5)
    assert (classify.max_batch_size, classify.max_wait_ms, classify.batch_time_limit_s) == (5, 5, 5)
    assert settings.report()["tasks"]["search.embed"]["from"] == dict.fromkeys(TASK_OPTION_NAMES, "default") | {
        "max_batch_size": "code",
        "max_wait_ms": "task_annotations",
        "look_ahead": "code",
        "max_age_ms": "task_annotations",
        "batch_time_limit_s": f"{tmp_path}/c.toml [defaults]",
    }


def test_the_table_of_a_task_beats_its_code_and_its_annotations(app: Celery, tmp_path: Path) -> None:
    settings = apply(app, tmp_path, '[tasks."search.embed"]\nmax_batch_size = 5\nmax_wait_ms = 5')
    options = app.tasks["search.embed"].options
    assert (options.max_batch_size, options.max_wait_ms, options.look_ahead) == (5, 5, 2)
    sources = settings.report()["tasks"]["search.embed"]["from"]
    assert sources["max_batch_size"] == sources["max_wait_ms"] == f'{tmp_path}/c.toml [tasks."search.embed"]'


def test_the_table_of_a_task_beats_the_defaults_of_its_file(app: Celery, tmp_path: Path) -> None:
    apply(app, tmp_path, "[defaults]\nmax_batch_size = 5\n[tasks.classify]\nmax_batch_size = 6")
    assert app.tasks["classify"].options.max_batch_size == 6


def test_a_preset_changes_nothing_that_the_code_says(app: Celery) -> None:
    setup(app, "cpu")
    Settings(app, configuration_of(app))
    assert app.tasks["search.embed"].options.max_batch_size == 64
    assert app.tasks["classify"].options.max_batch_size == 16


def test_remote_control_beats_all(app: Celery, tmp_path: Path) -> None:
    settings = apply(app, tmp_path, "[tasks.classify]\nmax_batch_size = 6")
    assert settings.set("classify", "max_batch_size", 7).max_batch_size == 7
    assert app.tasks["classify"].options.max_batch_size == 7
    assert settings.report()["tasks"]["classify"]["from"]["max_batch_size"] == "remote control"


# --- What is refused at the start -------------------------------------------------------------------------------------


def test_tables_that_name_no_batch_task_are_refused_with_the_nearest(app: Celery, tmp_path: Path) -> None:
    assert problems(app, tmp_path, '[tasks."serch.embed"]\n[tasks.plain]\n[tasks.classify]') == [
        '[tasks."serch.embed"] names no batch task of this app. Did you mean "search.embed"? '
        "Possible: classify, search.embed.",
        "[tasks.plain] names a plain task; only a BatchTask is meant here.",
    ]


def test_tasks_to_serve_that_do_not_exist_are_refused_with_who_named_them(app: Celery, tmp_path: Path) -> None:
    assert problems(app, tmp_path, BATCHERY_TASKS="clasify") == [
        "tasks = ['clasify'] (BATCHERY_TASKS) names no batch task of this app. Did you mean \"classify\"? "
        "Possible: classify, search.embed."
    ]


def test_a_token_budget_for_items_without_a_length_is_refused_with_where_it_is_from(
    app: Celery, tmp_path: Path
) -> None:
    (problem,) = problems(app, tmp_path, "[defaults]\nmax_batch_tokens = 100")
    assert problem.startswith("Task classify: max_batch_tokens = 100 needs to know an item's length")
    assert problem.endswith("(max_batch_tokens = 100 is from c.toml [defaults].)")


def test_options_are_refused_that_contradict_what_the_code_says_and_only_those(app: Celery, tmp_path: Path) -> None:
    apply(app, tmp_path, '[tasks."search.embed"]\npreferred_batch_sizes = [8, 64]')
    assert app.tasks["search.embed"].options.preferred_batch_sizes == (8, 64)
    assert problems(app, tmp_path, "[tasks.classify]\npreferred_batch_sizes = [8, 64]") == [
        "Task classify: preferred_batch_sizes = [8, 64] exceed max_batch_size = 32. "
        "(preferred_batch_sizes = [8, 64] is from c.toml [tasks.classify].)"
    ]


def test_a_table_of_a_task_that_is_served_elsewhere_is_fine(app: Celery, tmp_path: Path) -> None:
    app.conf.task_routes = {"classify": "other"}
    settings = apply(app, tmp_path, "[tasks.classify]\nmax_batch_size = 5", BATCHERY_TASKS="search.embed")
    assert list(settings.tasks) == ["search.embed"]
    assert list(settings.unserved) == ["classify"]


# --- Queues that would bring tasks which are not served ---------------------------------------------------------------


def classify_elsewhere(name: str, *_: Any, **__: Any) -> Any:
    return {"queue": "other"} if name == "classify" else None


def only_with_arguments(name: str, args: Any, *_: Any, **__: Any) -> Any:
    return {"queue": args[0]}


@pytest.mark.parametrize(
    "routes", [{"classify": "other"}, {"class*": {"queue": "other"}}, classify_elsewhere, only_with_arguments]
)
def test_a_task_that_is_routed_elsewhere_need_not_be_served(app: Celery, tmp_path: Path, routes: Any) -> None:
    app.conf.task_routes = routes
    assert list(apply(app, tmp_path, '[worker]\ntasks = ["search.embed"]').tasks) == ["search.embed"]
    assert "other" not in app.amqp.queues


@pytest.mark.parametrize("routes", [None, {"classify": "celery"}])
def test_a_task_whose_queue_is_consumed_but_that_is_not_served_is_refused(
    app: Celery, tmp_path: Path, routes: Any
) -> None:
    app.conf.task_routes = routes
    assert problems(app, tmp_path, '[worker]\ntasks = ["search.embed"]') == [
        "Task classify is sent to the queue 'celery', from which this worker would take it without serving it "
        "(tasks = ['search.embed'], c.toml [worker]). Send it to another queue (task_routes), let this worker consume "
        "others (-Q), or let it serve the task."
    ]


def test_a_worker_of_other_queues_need_not_serve_it(app: Celery, tmp_path: Path) -> None:
    app.amqp.queues.select(["other"])
    assert list(apply(app, tmp_path, BATCHERY_TASKS="search.embed").tasks) == ["search.embed"]
    app.amqp.queues.select(["other", "celery"])
    assert len(problems(app, tmp_path, BATCHERY_TASKS="search.embed")) == 1


def test_a_worker_may_serve_no_batch_task_at_all(app: Celery) -> None:
    app.amqp.queues.select(["plain"])
    setup(app, WorkerOptions(tasks=[]))
    assert Settings(app, configuration_of(app)).tasks == {}


# --- What is refused at run time --------------------------------------------------------------------------------------

REFUSED: list[tuple[str, str, Any, str]] = [
    ("clasify", "max_batch_size", 3, 'serves no task \'clasify\'. Did you mean "classify"? Possible: classify, search'),
    ("plain", "max_batch_size", 3, "This worker serves no task 'plain'."),
    ("classify", "max_batch_siz", 3, "no option that can be set at run time. Did you mean \"max_batch_size\"?"),
    ("classify", "max_batch_size", 0, "max_batch_size = 0 is not possible: it must be a whole number from 1 to 65,536"),
    ("classify", "max_batch_tokens", 9, "max_batch_tokens = 9 needs to know an item's length"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option", "value", "reason"), REFUSED)
def test_remote_control_refuses_what_cannot_be_set_and_says_what_can(
    app: Celery, tmp_path: Path, name: str, option: str, value: Any, reason: str
) -> None:
    settings = apply(app, tmp_path)
    before = settings.report()
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the message is looked at
        settings.set(name, option, value)
    assert reason in str(refusal.value)
    assert settings.report() == before


def test_every_option_that_can_be_set_at_run_time_is_a_tasks(app: Celery, tmp_path: Path) -> None:
    settings = apply(app, tmp_path)
    for option in RUNTIME_OPTIONS:
        value = getattr(app.tasks["search.embed"], option)
        settings.set("search.embed", option, value)
    assert settings.set("search.embed", "max_batch_tokens", "none").max_batch_tokens is None


@pytest.mark.parametrize("command", [control.batching, control.batching_set])
def test_a_worker_of_an_app_without_setup_says_so(command: Any) -> None:
    answer = command(SimpleNamespace(consumer=object()))
    assert answer == {"error": "This worker does not run batch tasks: its app does not call batchery.setup(app)."}


# --- setup ------------------------------------------------------------------------------------------------------------


def test_setup_reads_no_file_in_a_caller(app: Celery) -> None:
    setup(app, "nowhere.toml")
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        Settings(app, configuration_of(app))


def test_setup_refuses_an_argument_that_is_no_configuration(app: Celery) -> None:
    with pytest.raises(TypeError, match="give a preset's name, the path of a TOML file, or WorkerOptions"):
        setup(app, {"lease_s": 3})  # type: ignore[arg-type]  # the point of the test


def test_an_infinite_value_is_reported_as_a_word(app: Celery, tmp_path: Path) -> None:
    settings = apply(app, tmp_path, "[tasks.classify]\nmax_age_ms = inf")
    assert settings.report()["tasks"]["classify"]["options"]["max_age_ms"] == "inf"
