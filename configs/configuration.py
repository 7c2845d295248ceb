"""The configuration of a deployment: a shipped preset, a TOML file, or options made in code.

A file has the tables `[worker]`, `[defaults]` (for every batch task, unless its code or `task_annotations` set the
option) and `[tasks."a.name"]` (for one task, also against its code). With `preset = "gpu"` it starts from that preset.
"""

import difflib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import asdict

from .options import Options, TaskOptions, WorkerOptions, check_option

CONFIG_VARIABLE = "BATCHERY_CONFIG"
TASKS_VARIABLE = "BATCHERY_TASKS"

_TOP_LEVEL = ("preset", "worker", "defaults", "tasks")


def _toml(path: str | Path) -> dict[str, Any]:
    return tomllib.loads(Path(path).read_text(encoding="utf-8"))


_PRESETS = {file.stem: _toml(file) for file in Path(__file__).with_name("presets").glob("*.toml")}


class ConfigurationError(ValueError):
    """Everything that is wrong with a configuration, one line for each problem."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  - ".join([f"This configuration cannot be used: {source}", *self.problems]))


class Setting(NamedTuple):
    """The value of an option, and where it comes from."""

    value: Any
    source: str


class Configuration(Struct):
    """The options that a deployment sets, each of them possible by itself."""

    #: Where the configuration comes from, in words.
    source: str
    worker: dict[str, Setting] = {}
    #: Options of every batch task whose code and `task_annotations` do not set them.
    defaults: dict[str, Setting] = {}
    #: Options of one task, whatever its code says. By the task's name.
    tasks: dict[str, dict[str, Setting]] = {}
    #: Everything that is wrong. A worker must not start with it, but can first look for more.
    problems: list[str] = []


def load_configuration(given: WorkerOptions | str | Path | None, environ: Mapping[str, str]) -> Configuration:
    """Return the configuration that `given` is or names: options, a preset's name, or a path.

    Without it the variable `BATCHERY_CONFIG` names a preset or a path; the last resort is the preset "default". The
    variable `BATCHERY_TASKS` (names with commas between them) overrules which tasks are served. No error is raised,
    because the app may not fit the configuration either: the result lists its `problems`.
    """
    if isinstance(given, WorkerOptions):
        usual, values = asdict(WorkerOptions()), asdict(given)
        worker = {name: Setting(value, "code") for name, value in values.items() if value != usual[name]}
        result = Configuration(source="WorkerOptions (by setup())", worker=worker)
    elif given is not None:
        result = _read(given, " (by setup())")
    elif chosen := environ.get(CONFIG_VARIABLE):
        result = _read(chosen, f" (by {CONFIG_VARIABLE})")
    else:
        result = _read("default", "")
    if names := [name.strip() for name in environ.get(TASKS_VARIABLE, "").split(",") if name.strip()]:
        result.worker["tasks"] = Setting(names, TASKS_VARIABLE)
    return result


def _read(choice: str | Path, by: str) -> Configuration:
    """Return the configuration that a preset or a file makes; `by` says who chose it."""
    is_path = isinstance(choice, Path) or choice.endswith(".toml") or "/" in choice or "\\" in choice
    source = f"{choice}" if is_path else f"preset {choice}"
    try:
        document = _toml(choice) if is_path else {"preset": choice}
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, or text that is not TOML
        problem = f"It cannot be read as TOML, from {Path.cwd()}: {error}."
        return Configuration(source=source + by, problems=[problem])
    result = Configuration(source=source + by)
    preset = document.get("preset")
    if isinstance(preset, str) and preset in _PRESETS:
        _add(result, _PRESETS[preset], f"preset {preset}")
        result.source = f"{source}, on top of preset {preset}{by}" if is_path else result.source
    elif preset is not None:
        hint = "" if is_path else " (A path to a file ends in .toml.)"
        result.problems.append(f"There is no preset {preset!r}. {did_you_mean(preset, _PRESETS)}{hint}")
    _add(result, document, source)
    return result


def _add(result: Configuration, document: Mapping[str, Any], source: str) -> None:
    """Add the settings of a document, which overrule earlier ones, and everything that is wrong in it."""
    result.problems += [f"{key}: {_misplaced(key, _TOP_LEVEL)}" for key in document if key not in _TOP_LEVEL]
    tables: list[tuple[type[Options], str, Any, dict[str, Setting]]] = [
        (WorkerOptions, "[worker]", document.get("worker", {}), result.worker),
        (TaskOptions, "[defaults]", document.get("defaults", {}), result.defaults),
    ]
    if isinstance(tasks := document.get("tasks", {}), dict):
        tables += [(TaskOptions, task_table(name), tasks[name], result.tasks.setdefault(name, {})) for name in tasks]
    else:
        result.problems.append("tasks: must be tables, one for each task: [tasks.embed].")
    for kind, head, table, settings in tables:
        if not isinstance(table, dict):
            result.problems.append(f"{head} = {table!r}: must be a table of options.")
            continue
        for key, value in table.items():
            try:
                if isinstance(value, dict) and head.startswith("[tasks."):
                    whole = task_table(f"{head[7:-1]}.{key}")
                    raise ValueError(f"{key}: a task's name with dots needs quotes: {whole}.")
                settings[key] = Setting(option_value(kind, key, value), f"{source} {head}")
            except ValueError as error:
                result.problems.append(f"{head} {error}")


def option_value(kind: type[Options], name: str, value: Any) -> Any:
    """Return what a file's value of an option is in Python, or raise a ValueError that says what is possible."""
    if name not in kind.__struct_fields__:
        raise ValueError(f"{name}: {_misplaced(name, kind.__struct_fields__)}")
    # TOML has no None. Where a task's option is None by default, which is no limit, a file says "none".
    if value == "none" and kind is TaskOptions and getattr(TaskOptions(), name) is None:
        return None
    check_option(kind, name, value)
    return value


def did_you_mean(word: object, possible: Collection[str]) -> str:
    """Return a hint: the word among `possible` that is most like `word`, and all that are possible."""
    close = difflib.get_close_matches(f"{word}", possible, 1)
    meant = f'Did you mean "{close[0]}"? ' if close else ""
    return f"{meant}Possible: {', '.join(sorted(possible)) or 'none'}."


def from_text(text: str) -> Any:
    """Return the value that `text` has in a TOML file, as 64, 2.5, inf or ["a", "b"]; other text stays text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def task_table(name: str) -> str:
    """Return the head of a task's table in a file."""
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return f"[tasks.{name}]" if bare else f'[tasks."{name}"]'


def _misplaced(key: str, possible: Collection[str]) -> str:
    """Return a hint for an unknown key: where it belongs, or which word was meant."""
    if key in TaskOptions.__struct_fields__:
        return "this is an option of a task, which belongs in [defaults] or a table such as [tasks.embed]."
    if key in WorkerOptions.__struct_fields__:
        return "this is an option of a worker, which belongs in [worker]."
    return f"there is no such option here. {did_you_mean(key, possible)}"
