"""The configuration of a worker: the batch tasks that it serves, their options, and where each option comes from."""

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from celery import Celery
from celery.app.task import extract_exec_options
from msgspec.structs import asdict, replace

from ...configs import TASK_OPTION_NAMES, TaskOptions, WorkerOptions
from ...configs.configuration import Configuration, ConfigurationError, did_you_mean, option_value, task_table
from ...producer import BatchTask
from ...producer.task.definition import check_budget

logger = logging.getLogger(__name__)

#: Options that a running engine can change. When the engine starts, it measures the costs of the preferred sizes and
#: starts the preprocess threads.
RUNTIME_OPTIONS = [name for name in TASK_OPTION_NAMES if name not in ("preferred_batch_sizes", "preprocess_threads")]


class Settings:
    """The configuration of one worker, applied to its tasks.

    Raises:
        ConfigurationError: the configuration has problems, or it does not fit this app's tasks or queues.
    """

    def __init__(self, app: Celery, configuration: Configuration) -> None:
        self.source = configuration.source
        self.worker = WorkerOptions(**{option: setting.value for option, setting in configuration.worker.items()})
        self._worker_sources = dict.fromkeys(WorkerOptions.__struct_fields__, "default")
        self._worker_sources |= {option: setting.source for option, setting in configuration.worker.items()}
        known = {name: task for name, task in app.tasks.items() if isinstance(task, BatchTask)}
        wanted = known if self.worker.tasks is None else self.worker.tasks
        #: The batch tasks that this worker serves, by name.
        self.tasks: dict[str, BatchTask] = {name: task for name, task in known.items() if name in wanted}
        #: The app's other batch tasks. Their messages are left to other workers.
        self.unserved: list[str] = sorted(known.keys() - self.tasks.keys())
        self._sources = {name: task.option_sources for name, task in self.tasks.items()}
        problems = [*configuration.problems, *self._unknown_names(app, known, configuration)]
        if known.keys() >= {*wanted}:
            problems += self._contested_queues(app)
        for name, task in self.tasks.items():
            problems += self._configure(task, self._sources[name], configuration)
        if problems:
            raise ConfigurationError(self.source, problems)

    def _unknown_names(self, app: Celery, known: Collection[str], configuration: Configuration) -> Iterator[str]:
        """Report names in the configuration that are not names of this app's batch tasks."""
        named = {task_table(name): name for name in configuration.tasks}
        named |= {f"tasks = [{name!r}] ({self._worker_sources['tasks']})": name for name in self.worker.tasks or ()}
        for place, name in named.items():
            if name in app.tasks and name not in known:
                yield f"{place} names a plain task; only a BatchTask is meant here."
            elif name not in known:
                yield f"{place} names no batch task of this app. {did_you_mean(name, known)}"

    def _contested_queues(self, app: Celery) -> Iterator[str]:
        """Report queues of this worker to which calls of tasks are sent that it does not serve."""
        # A copy of the queues, because Celery's own would make one that is missing.
        router = app.amqp.Router({**app.amqp.queues}, create_missing=False)
        for name in self.unserved:
            task = app.tasks[name]
            try:
                queue = router.route(extract_exec_options(task), name, (), {}, task)["queue"].name
            except Exception as error:  # a queue of other workers, or a router that wants to see a call's arguments
                logger.debug("The route of %s is not known: %r", name, error)
                continue
            if queue in app.amqp.queues.consume_from:
                yield (
                    f"Task {name} is sent to the queue {queue!r}, from which this worker would take it without serving "
                    f"it (tasks = {[*self.tasks]}, {self._worker_sources['tasks']}). Send it to another queue "
                    "(task_routes), let this worker consume others (-Q), or let it serve the task."
                )

    def _configure(self, task: BatchTask, sources: dict[str, str], configuration: Configuration) -> Iterator[str]:
        """Set the options that the configuration has for a task, or report why they do not fit its code."""
        settings = {name: setting for name, setting in configuration.defaults.items() if sources[name] == "default"}
        settings |= configuration.tasks.get(task.name, {})
        if not settings:
            return
        try:
            options = replace(task.options, **{option: setting.value for option, setting in settings.items()})
            if type(task).load is BatchTask.load:  # else load may make the batcher, and the check follows there
                check_budget(task, options.max_batch_tokens)
        except ValueError as error:
            places = (f"{option} = {setting.value!r} is from {setting.source}" for option, setting in settings.items())
            yield f"Task {task.name}: {error} ({'; '.join(places)}.)"
            return
        for option, setting in settings.items():
            setattr(task, option, setting.value)
            sources[option] = setting.source

    def set(self, name: str, option: str, value: Any) -> TaskOptions:
        """Change an option of a task and return all of its options; a ValueError says what is possible instead."""
        if name not in self.tasks:
            raise ValueError(f"This worker serves no task {name!r}. {did_you_mean(name, self.tasks)}")
        if option not in RUNTIME_OPTIONS:
            hint = did_you_mean(option, RUNTIME_OPTIONS)
            raise ValueError(f"{option!r} is no option that can be set at run time. {hint}")
        task = self.tasks[name]
        value = option_value(TaskOptions, option, value)
        options = replace(task.options, **{option: value})
        check_budget(task, options.max_batch_tokens)
        setattr(task, option, value)
        self._sources[name][option] = "remote control"
        return options

    def report(self) -> dict[str, Any]:
        """Return every option's value and where it comes from, as JSON can carry it."""
        return {
            "configuration": self.source,
            "worker": _report(self.worker, self._worker_sources),
            "tasks": {name: _report(task.options, self._sources[name]) for name, task in self.tasks.items()},
            "unserved_tasks": self.unserved,
        }


def _report(options: TaskOptions | WorkerOptions, sources: Mapping[str, str]) -> dict[str, Any]:
    # JSON has no word for inf.
    values = {name: "inf" if value == float("inf") else value for name, value in asdict(options).items()}
    return {"options": values, "from": dict(sources)}
