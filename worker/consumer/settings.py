"""What holds in this worker: the batch tasks that it serves, and each one's options with where they come from."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from celery import Celery
from celery.exceptions import QueueNotFound

from ...configs import (
    TASK_OPTION_NAMES,
    Configuration,
    ConfigurationError,
    Setting,
    TaskOptions,
    WorkerOptions,
    did_you_mean,
    option_value,
    task_table,
)
from ...producer import BatchTask
from ...producer.task.definition import check_budget
from .setup import configuration_of

logger = logging.getLogger(__name__)

#: Options that a running engine can change: nothing that was made at its start depends on them.
RUNTIME_OPTIONS = (
    "max_batch_size",
    "max_batch_tokens",
    "small_batch_threshold",
    "max_wait_ms",
    "look_ahead",
    "max_age_ms",
    "batch_time_limit_s",
)


def settings_of(app: Celery) -> "Settings":
    """Apply the configuration of `app` to its tasks.

    Raises:
        ConfigurationError: it cannot be read, is wrong, or does not fit the app: all of that at once.
    """
    try:
        return Settings(app, configuration_of(app))
    except ConfigurationError as error:
        if error.rest is None:
            raise
        return Settings(app, error.rest, error.problems)


class Settings:
    """The configuration of one worker, applied to its tasks."""

    def __init__(self, app: Celery, configuration: Configuration, problems: Iterable[str] = ()) -> None:
        """Choose the tasks and set their options.

        Raises:
            ConfigurationError: there are `problems` already, or it does not fit this app's tasks, or its queues.
        """
        self.source = configuration.source
        self.worker: WorkerOptions = configuration.worker
        self._worker_sources = configuration.worker_sources
        known = {name: task for name, task in app.tasks.items() if isinstance(task, BatchTask)}
        wanted = known if self.worker.tasks is None else self.worker.tasks
        #: The batch tasks that this worker serves, by name.
        self.tasks: dict[str, Any] = {name: task for name, task in known.items() if name in wanted}
        #: The app's other batch tasks: their messages are left to other workers.
        self.unserved: Collection[str] = sorted(known.keys() - self.tasks.keys())
        self._sources = {name: dict(task.option_sources) for name, task in self.tasks.items()}
        problems = [*problems, *self._unknown_names(app, known, configuration)]
        if known.keys() >= {*wanted}:
            problems += self._contested_queues(app)
        for name in self.tasks:
            problems += self._configure(name, configuration)
        if problems:
            raise ConfigurationError(self.source, problems)

    # -- At the start ------------------------------------------------------------------------------------------------

    def _unknown_names(self, app: Celery, known: Mapping[str, Any], configuration: Configuration) -> Iterator[str]:
        said = {task_table(name): name for name in configuration.tasks}
        said |= {f"tasks = [{name!r}] ({self._worker_source('tasks')})": name for name in self.worker.tasks or ()}
        for place, name in said.items():
            if name in app.tasks and name not in known:
                yield f"{place} names a plain task; only a BatchTask is meant here."
            elif name not in known:
                yield f"{place} names no batch task of this app. {did_you_mean(name, known)}"

    def _contested_queues(self, app: Celery) -> Iterator[str]:
        """Tell of queues of this worker to which tasks are sent that it does not serve."""
        consumed = {*app.amqp.queues.consume_from}
        for name in self.unserved:
            queue = _queue_of(app, app.tasks[name])
            if queue in consumed:
                yield (
                    f"Task {name} is sent to the queue {queue!r}, from which this worker would take it without serving "
                    f"it (tasks = {[*self.tasks]}, {self._worker_source('tasks')}). Send it to another queue "
                    "(task_routes), let this worker consume others (-Q), or let it serve the task."
                )

    def _configure(self, name: str, configuration: Configuration) -> Iterator[str]:
        """Set what the configuration says of a task; tell what does not fit its code."""
        task, sources = self.tasks[name], self._sources[name]
        settings = {option: said for option, said in configuration.defaults.items() if sources[option] == "default"}
        settings |= configuration.tasks.get(name, {})
        if not settings:
            return
        values = {option: getattr(task, option) for option in TASK_OPTION_NAMES}
        values |= {option: said.value for option, said in settings.items()}
        try:
            TaskOptions(**values)
            if type(task).load is BatchTask.load:  # else the batcher may be made there, and it is checked then
                check_budget(task, values["max_batch_tokens"])
        except ValueError as error:
            yield f"Task {name}: {error} ({_places(settings)}.)"
            return
        for option, said in settings.items():
            setattr(task, option, said.value)
            sources[option] = said.source

    # -- While it runs -----------------------------------------------------------------------------------------------

    def set(self, name: str, option: str, value: Any) -> TaskOptions:
        """Change an option of a task from now on; return all of its options.

        Raises:
            ValueError: no such task or option, or this value is not possible; the message says what is.
        """
        if name not in self.tasks:
            raise ValueError(f"This worker serves no task {name!r}. {did_you_mean(name, self.tasks)}")
        if option not in RUNTIME_OPTIONS:
            raise ValueError(
                f"{option!r} is no option that can be set at run time. {did_you_mean(option, RUNTIME_OPTIONS)}"
            )
        task = self.tasks[name]
        value = option_value(TaskOptions, option, value)
        options: TaskOptions = replace(task.options, **{option: value})
        check_budget(task, options.max_batch_tokens)
        setattr(task, option, value)
        self._sources[name][option] = "remote control"
        return options

    def report(self) -> dict[str, Any]:
        """Return every option's value and where it comes from, as JSON can carry it."""
        worker = {option.name: getattr(self.worker, option.name) for option in fields(WorkerOptions)}
        return {
            "configuration": self.source,
            "worker": _table(worker, {option: self._worker_source(option) for option in worker}),
            "tasks": {
                name: _table({option: getattr(task, option) for option in TASK_OPTION_NAMES}, self._sources[name])
                for name, task in self.tasks.items()
            },
            "unserved_tasks": [*self.unserved],
        }

    def _worker_source(self, option: str) -> str:
        return self._worker_sources.get(option, "default")


def _table(values: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    # JSON has no word for inf.
    told = {name: "inf" if value == float("inf") else value for name, value in values.items()}
    return {"options": told, "from": dict(sources)}


def _places(settings: Mapping[str, Setting]) -> str:
    return "; ".join(f"{option} = {said.value!r} is from {said.source}" for option, said in settings.items())


def _queue_of(app: Celery, task: Any) -> str | None:
    """Return the name of the queue that calls of `task` go to, as far as the app's routes tell without arguments."""
    options = {name: getattr(task, name) for name in ("queue", "exchange", "routing_key") if getattr(task, name, None)}
    # A copy, because Celery's own would make a queue that is missing.
    router = app.amqp.Router({**app.amqp.queues}, create_missing=False)
    try:
        route = router.route(options, task.name, (), {}, task)
    except QueueNotFound:  # a queue that this worker does not know is not one of its own
        return None
    except Exception as error:  # a router of the app's, which wants to see a call's arguments
        logger.debug("The route of %s is not known: %r", task.name, error)
        return None
    queue = route.get("queue")
    return None if queue is None else str(queue.name)
