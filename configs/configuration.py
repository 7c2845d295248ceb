"""What a deployment says of its workers and tasks: a shipped preset, a TOML file, or options made in code.

A file has the tables `[worker]`, `[defaults]` (every batch task, where code and annotations say nothing) and
`[tasks."a.name"]` (one task, whatever its code says); `preset = "gpu"` makes it start from a shipped one.
"""

import difflib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args

from .options import OptionError, TaskOptions, WorkerOptions

CONFIG_VARIABLE = "BATCHERY_CONFIG"
TASKS_VARIABLE = "BATCHERY_TASKS"

#: TOML has no word for None: where a task's option may be None, which is no limit, this is it.
_NONE = "none"

_KINDS: Mapping[type[TaskOptions] | type[WorkerOptions], tuple[str, str]] = {
    TaskOptions: ("a task", "[defaults] or a table such as [tasks.embed]"),
    WorkerOptions: ("a worker", "[worker]"),
}
_TOP_LEVEL = ("preset", "worker", "defaults", "tasks")


class ConfigurationError(ValueError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, source: str, problems: Iterable[str], rest: "Configuration | None" = None) -> None:
        """Refuse what `source` says."""
        self.problems = tuple(problems)
        #: What is right in it, in which more may be wrong; None if it could not be read at all.
        self.rest = rest
        super().__init__("\n  - ".join([f"This configuration cannot be used: {source}", *self.problems]))


class Setting(NamedTuple):
    """The value of an option, and who says so."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What holds for a worker, and for its tasks by name."""

    #: Where it comes from, in words.
    source: str
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    #: Who says so, for each of the worker's options that is not at its default.
    worker_sources: Mapping[str, str] = field(default_factory=dict)
    #: What holds for every batch task where its code and `task_annotations` say nothing.
    defaults: Mapping[str, Setting] = field(default_factory=dict)
    #: What holds for one task, whatever its code says.
    tasks: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)


def load_configuration(given: WorkerOptions | str | Path | None, environ: Mapping[str, str]) -> Configuration:
    """Return the configuration that was `given`: options, a preset's name, a path; None: what `environ` names.

    That is `BATCHERY_CONFIG`, else the preset "default". `BATCHERY_TASKS` (names, with commas) says in any case which
    tasks are served.

    Raises:
        ConfigurationError: it cannot be read, or something in it is wrong.
    """
    problems: Collection[str] = ()
    if isinstance(given, WorkerOptions):
        usual = WorkerOptions()
        set_here = [name for name in _names(WorkerOptions) if getattr(given, name) != getattr(usual, name)]
        said = Configuration(
            source="WorkerOptions (by setup())", worker=given, worker_sources=dict.fromkeys(set_here, "code")
        )
    elif given is not None:
        said, problems = _read(given, " (by setup())")
    elif environ.get(CONFIG_VARIABLE):
        said, problems = _read(environ[CONFIG_VARIABLE], f" (by {CONFIG_VARIABLE})")
    else:
        said, problems = _read("default", "")
    names = [name.strip() for name in environ.get(TASKS_VARIABLE, "").split(",") if name.strip()]
    if names:
        sources = {**said.worker_sources, "tasks": TASKS_VARIABLE}
        said = replace(said, worker=replace(said.worker, tasks=names), worker_sources=sources)
    if problems:
        raise ConfigurationError(said.source, problems, said)
    return said


def did_you_mean(word: object, possible: Collection[str]) -> str:
    """Say which of `possible` was meant, if one is like `word`, and what is possible."""
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


def option_value(kind: type[TaskOptions] | type[WorkerOptions], name: str, value: Any) -> Any:
    """Return what a file's value for the option `name` is in Python, checked by itself.

    Raises:
        OptionError: it is not possible, whatever the other options are.
    """
    (option,) = (option for option in fields(kind) if option.name == name)
    if value == _NONE and kind is TaskOptions and NoneType in get_args(option.type):
        return None
    try:
        kind(**{name: value})
    except OptionError as error:
        if error.name == name:
            raise
    except ValueError:
        pass  # it does not go with the others' defaults; whether it goes with their values is seen in the worker
    return value


class _Reader:
    """Reads one file on top of the preset that it names, and gathers what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.worker: dict[str, Setting] = {}
        self.defaults: dict[str, Setting] = {}
        self.tasks: dict[str, dict[str, Setting]] = {}

    def read(self, document: Mapping[str, Any], source: str) -> str:
        """Take in a document; return the source, with the preset below it."""
        preset = document.get("preset")
        below = ""
        if isinstance(preset, str) and preset in _presets():
            below = f", on top of {self.read(tomllib.loads(_preset_text(preset)), f'preset {preset}')}"
        elif preset is not None:
            self.problems.append(
                f"preset = {preset!r} is none of the shipped presets. {did_you_mean(preset, _presets())}"
            )
        unknown = [key for key in document if key not in _TOP_LEVEL]
        self.problems += [f"{key}: {_misplaced(key, _TOP_LEVEL)}" for key in unknown]
        self.worker |= self._settings(WorkerOptions, document.get("worker", {}), "[worker]", source)
        self.defaults |= self._settings(TaskOptions, document.get("defaults", {}), "[defaults]", source)
        tasks = document.get("tasks", {})
        if not isinstance(tasks, dict):
            self.problems.append("tasks: must be tables, one for each task: [tasks.embed].")
            tasks = {}
        for name, table in tasks.items():
            settings = self._settings(TaskOptions, table, task_table(name), source)
            if not _has_tables(table):  # else its head is not the name that was meant
                self.tasks.setdefault(name, {}).update(settings)
        return source + below

    def _settings(
        self, kind: type[TaskOptions] | type[WorkerOptions], table: Any, place: str, source: str
    ) -> dict[str, Setting]:
        if not isinstance(table, dict):
            self.problems.append(f"{place} = {table!r}: must be a table of options.")
            return {}
        settings = {}
        for key, value in table.items():
            if key not in _names(kind):
                hint = _misplaced(key, _names(kind), kind)
                if isinstance(value, dict) and place.startswith("[tasks."):
                    whole = f"{place[7:-1]}.{key}"
                    hint = f"a task's name with dots needs quotes: {task_table(whole)}."
                self.problems.append(f"{place} {key}: {hint}")
                continue
            try:
                settings[key] = Setting(option_value(kind, key, value), f"{source} {place}")
            except OptionError as error:
                as_none = f' In TOML, None is "{_NONE}".' if "None" in str(error) else ""
                self.problems.append(f"{place} {error}{as_none}")
        return settings


def _read(choice: str | Path, by: str) -> tuple[Configuration, Collection[str]]:
    """Return what a preset or a file says, and what is wrong with it; `by` says who chose it."""
    is_path = isinstance(choice, Path) or choice.endswith(".toml") or "/" in choice or "\\" in choice
    source = f"{choice}" if is_path else f"preset {choice}"
    if not is_path and choice not in _presets():
        problem = f"There is no such preset. {did_you_mean(choice, _presets())} (A path to a file ends in .toml.)"
        raise ConfigurationError(source + by, [problem])
    reader = _Reader()
    try:
        stack = reader.read(tomllib.loads(_file_text(choice) if is_path else _preset_text(f"{choice}")), source)
    except OSError as error:
        problem = f"It cannot be read, from {Path.cwd()}: {error.strerror or error}."
        raise ConfigurationError(source + by, [problem]) from error
    except ValueError as error:  # TOML's, and that of what is no UTF-8
        raise ConfigurationError(source + by, [f"This is no TOML: {error}."]) from error
    worker = WorkerOptions()
    try:
        worker = WorkerOptions(**{name: setting.value for name, setting in reader.worker.items()})
    except ValueError as error:  # options that contradict each other
        reader.problems.append(f"[worker] {error}")
    said = Configuration(
        source=stack + by,
        worker=worker,
        worker_sources={name: setting.source for name, setting in reader.worker.items()},
        defaults=reader.defaults,
        tasks=reader.tasks,
    )
    return said, reader.problems


def _file_text(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8")


def _has_tables(table: object) -> bool:
    return isinstance(table, dict) and any(isinstance(value, dict) for value in table.values())


def _presets() -> Collection[str]:
    folder = resources.files(__package__).joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _preset_text(name: str) -> str:
    return resources.files(__package__).joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")


def _names(kind: type[TaskOptions] | type[WorkerOptions]) -> Collection[str]:
    return [option.name for option in fields(kind)]


def _misplaced(key: str, possible: Collection[str], here: object = None) -> str:
    """Say of an unknown key where it belongs, or what was meant."""
    for kind, (whose, tables) in _KINDS.items():
        if kind is not here and key in _names(kind):
            return f"this is an option of {whose}, which belongs in {tables}."
    return f"there is no such option here. {did_you_mean(key, possible)}"
