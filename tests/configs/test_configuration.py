"""A deployment is configured by a preset, a file or the environment, and is told everything that is wrong at once."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from batchery.configs import TaskOptions, WorkerOptions
from batchery.configs.configuration import (
    Configuration,
    ConfigurationError,
    Setting,
    from_text,
    load_configuration,
    task_table,
)

Write = Callable[[str], Path]
PRESETS = Path(__file__).parents[2] / "configs" / "presets"
PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write(text)`: a file `deployment.toml` in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("deployment.toml").write_text(text)
        return Path("deployment.toml")

    return write


def load(given: Any, **environ: str) -> Configuration:
    """A configuration in which nothing is wrong."""
    loaded = load_configuration(given, environ)
    assert loaded.problems == []
    return loaded


def problems(given: Any, **environ: str) -> list[str]:
    return load_configuration(given, environ).problems


def values(settings: Mapping[str, Setting]) -> dict[str, Any]:
    return {name: setting.value for name, setting in settings.items()}


# --- Where it comes from ----------------------------------------------------------------------------------------------


def test_every_option_has_its_default_if_nothing_is_configured() -> None:
    assert load(None) == Configuration(source="preset default")


def test_the_environment_names_a_preset_or_a_file(write: Write) -> None:
    path = write("[worker]\nlease_s = 7")
    assert load(None, BATCHERY_CONFIG="cpu").source == "preset cpu (by BATCHERY_CONFIG)"
    loaded = load(None, BATCHERY_CONFIG=str(path))
    assert (loaded.source, values(loaded.worker)) == ("deployment.toml (by BATCHERY_CONFIG)", {"lease_s": 7})


def test_an_empty_environment_variable_counts_as_unset() -> None:
    assert load(None, BATCHERY_CONFIG="", BATCHERY_TASKS="").source == "preset default"


@pytest.mark.parametrize("given", ["gpu", WorkerOptions(device="cuda")])
def test_the_argument_of_setup_beats_the_environment(given: Any) -> None:
    loaded = load(given, BATCHERY_CONFIG="cpu")
    assert loaded.worker["device"].value == "cuda"
    assert "BATCHERY_CONFIG" not in loaded.source


def test_options_made_in_code_have_code_as_their_source() -> None:
    loaded = load(WorkerOptions(lease_s=5))
    assert loaded.worker == {"lease_s": Setting(5, "code")}


def test_the_environment_says_which_tasks_are_served_whatever_else_is_configured() -> None:
    loaded = load(WorkerOptions(tasks=["other"]), BATCHERY_TASKS=" search.embed, classify,")
    assert loaded.worker["tasks"] == Setting(["search.embed", "classify"], "BATCHERY_TASKS")


def test_a_file_is_read_by_path_even_without_its_usual_ending(tmp_path: Path) -> None:
    (tmp_path / "deployment.conf").write_text("worker.lease_s = 7")
    assert values(load(tmp_path / "deployment.conf").worker) == {"lease_s": 7}
    assert values(load(str(tmp_path / "deployment.conf")).worker) == {"lease_s": 7}


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_file_sets_options_of_the_worker_of_all_tasks_and_of_one(write: Write) -> None:
    loaded = load(
        write('[worker]\ntasks = ["a"]\n[defaults]\nlook_ahead = 4\n[tasks."search.embed"]\nmax_age_ms = inf')
    )
    assert loaded.worker == {"tasks": Setting(["a"], "deployment.toml [worker]")}
    assert loaded.defaults == {"look_ahead": Setting(4, "deployment.toml [defaults]")}
    table = 'deployment.toml [tasks."search.embed"]'
    assert loaded.tasks == {"search.embed": {"max_age_ms": Setting(float("inf"), table)}}


def test_a_file_goes_on_top_of_the_preset_that_it_names(write: Write) -> None:
    loaded = load(write('preset = "cpu"\n[worker]\nlease_s = 7\n[defaults]\nmax_batch_size = 3'))
    assert loaded.worker["lease_s"] == Setting(7, "deployment.toml [worker]")
    assert loaded.worker["device"] == Setting("cpu", "preset cpu [worker]")
    assert loaded.defaults["max_batch_size"] == Setting(3, "deployment.toml [defaults]")
    assert loaded.defaults["look_ahead"].source == "preset cpu [defaults]"
    assert loaded.source == "deployment.toml, on top of preset cpu (by setup())"


def test_a_file_says_none_as_a_word_where_there_may_be_no_limit(write: Write) -> None:
    loaded = load(write('[tasks.embed]\nmax_batch_tokens = "none"'))
    assert loaded.tasks["embed"]["max_batch_tokens"].value is None
    assert problems(write('worker.tasks = "none"\n[tasks.embed]\nmax_batch_size = "none"')) == [
        "[worker] tasks = 'none' is not possible: it must be a list of tasks' names; without it all are served.",
        "[tasks.embed] max_batch_size = 'none' is not possible: it must be a whole number from 1 to 65,536.",
    ]


EVERYTHING_WRONG = """
preset = "gpuu"
max_batch_size = 3
[worker]
lease = 10
held_max_bytes = "a lot"
look_ahead = 3
[default]
max_wait_ms = 5
[defaults]
max_wait_ms = -1
lease_s = 5
[tasks.search.embed]
max_batch_size = 4
[tasks."search.rank"]
max_batch_tokens = 0
xyz = 0
"""


def test_everything_that_is_wrong_is_told_at_once(write: Write) -> None:
    worker, task = (", ".join(sorted(kind.__struct_fields__)) for kind in (WorkerOptions, TaskOptions))
    belongs = "this is an option of a task, which belongs in [defaults] or a table such as [tasks.embed]."
    assert problems(write(EVERYTHING_WRONG)) == [
        "There is no preset 'gpuu'. Did you mean \"gpu\"? Possible: cpu, default, gpu.",
        f"max_batch_size: {belongs}",
        'default: there is no such option here. Did you mean "defaults"? Possible: defaults, preset, tasks, worker.',
        f'[worker] lease: there is no such option here. Did you mean "lease_s"? Possible: {worker}.',
        "[worker] held_max_bytes = 'a lot' is not possible: it must be a whole number of bytes from 1 to "
        "1,000,000,000,000.",
        f"[worker] look_ahead: {belongs}",
        "[defaults] max_wait_ms = -1 is not possible: it must be a number of ms from 0 to 1,000,000,000.",
        "[defaults] lease_s: this is an option of a worker, which belongs in [worker].",
        '[tasks.search] embed: a task\'s name with dots needs quotes: [tasks."search.embed"].',
        '[tasks."search.rank"] max_batch_tokens = 0 is not possible: it must be a whole number from 1 to '
        '1,000,000,000,000, or None ("none" in a file).',
        f'[tasks."search.rank"] xyz: there is no such option here. Possible: {task}.',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("worker = 3", "[worker] = 3: must be a table of options."),
        ("defaults = 3", "[defaults] = 3: must be a table of options."),
        ("tasks = 3", "tasks: must be tables, one for each task: [tasks.embed]."),
        ("tasks.embed = 3", "[tasks.embed] = 3: must be a table of options."),
        ("preset = 3", "There is no preset 3. Possible: cpu, default, gpu."),
        ("[worker]\nlease_s = 2000-01-01", "it must be a number of seconds from 1 to 1,000,000."),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(write: Write, text: str, problem: str) -> None:
    (told,) = problems(write(text))
    assert told.endswith(problem)


def test_the_error_names_the_file_and_who_named_it(write: Write) -> None:
    write("[worker]\nlease_s = 0")
    loaded = load_configuration(None, {"BATCHERY_CONFIG": "deployment.toml"})
    assert str(ConfigurationError(loaded.source, loaded.problems)) == (
        "This configuration cannot be used: deployment.toml (by BATCHERY_CONFIG)\n"
        "  - [worker] lease_s = 0 is not possible: it must be a number of seconds from 1 to 1,000,000."
    )


def test_a_file_that_is_no_toml_is_refused_with_the_line(write: Write, tmp_path: Path) -> None:
    assert problems(write("[worker]\nlease_s = = 3")) == [
        f"It cannot be read as TOML, from {tmp_path}: Invalid value (at line 2, column 11)."
    ]


def test_a_file_that_cannot_be_read_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    for given, reason in (
        ("missing.toml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        ("latin.toml", "can't decode byte 0xe9"),
    ):
        (problem,) = problems(given)
        assert problem.startswith(f"It cannot be read as TOML, from {tmp_path}: ")
        assert reason in problem


def test_a_preset_that_does_not_exist_is_refused_with_the_nearest() -> None:
    assert problems("gpuu") == [
        "There is no preset 'gpuu'. Did you mean \"gpu\"? Possible: cpu, default, gpu. "
        "(A path to a file ends in .toml.)"
    ]


# --- Presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_shipped_preset_is_sound_and_speaks_of_no_task(name: str) -> None:
    loaded = load(name)
    assert loaded.tasks == {}
    TaskOptions(**{option: setting.value for option, setting in loaded.defaults.items()})


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_shipped_preset_gives_a_reason_for_each_value_and_repeats_no_default(name: str) -> None:
    lines = (PRESETS / f"{name}.toml").read_text().splitlines()
    document = tomllib.loads("\n".join(lines))
    for table, usual in (("worker", WorkerOptions()), ("defaults", TaskOptions())):
        for option, value in document.get(table, {}).items():
            (at,) = (index for index, line in enumerate(lines) if line.startswith(f"{option} = "))
            assert lines[at - 1].startswith("#")
            assert value != getattr(usual, option)


# --- Values as text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("64", 64), ("2.5", 2.5), ("inf", float("inf")), ("[1, 2]", [1, 2]), ("none", "none"), ("", ""), ("a b", "a b")],
)
def test_a_value_given_as_text_is_read_as_in_a_file(text: str, value: Any) -> None:
    assert from_text(text) == value


@pytest.mark.parametrize(("name", "head"), [("embed", "[tasks.embed]"), ("search.embed", '[tasks."search.embed"]')])
def test_the_head_of_a_tasks_table_has_quotes_where_toml_needs_them(name: str, head: str) -> None:
    assert task_table(name) == head
    assert list(tomllib.loads(f"{head}\nmax_batch_size = 3")["tasks"]) == [name]
