"""Remote control: `celery inspect batching` and `celery control batching_set`.

Celery's command line knows them once an app imports `batchery.setup`, so nothing heavy is imported here.
"""

import logging
from typing import Any

from celery.worker.control import control_command, inspect_command

from ...configs.configuration import from_text

logger = logging.getLogger(__name__)

_OTHER_CONSUMER = {"error": "This worker does not run batch tasks: its app does not call batchery.setup(app)."}


@inspect_command()
def batching(state: Any, **_: Any) -> dict[str, Any]:
    """Show batch tasks' options, where each comes from, and what the engine has done."""
    consumer = state.consumer
    if not hasattr(consumer, "settings"):
        return _OTHER_CONSUMER
    report: dict[str, Any] = consumer.settings.report()
    if consumer.engine is None:
        return {**report, "engine": "starting"}
    for name, told in report["tasks"].items():
        told["figures"] = consumer.engine.task_stats(name)
    return {**report, "engine": consumer.engine.stats()}


@control_command(args=[("task", str), ("option", str), ("value", str)], signature="<task> <option> <value>")
def batching_set(state: Any, task: str = "", option: str = "", value: Any = "", **_: Any) -> dict[str, str]:
    """Change a batch task's option until the worker ends, as: search.embed max_batch_size 128."""
    consumer = state.consumer
    if not hasattr(consumer, "settings"):
        return _OTHER_CONSUMER
    try:
        options = consumer.settings.set(task, option, from_text(value) if isinstance(value, str) else value)
    except ValueError as error:
        return {"error": str(error)}
    if consumer.engine is not None:
        consumer.engine.set_options(task, options)
    logger.info("Task %s: %s is %r now, by remote control.", task, option, getattr(options, option))
    return {"ok": f"{task}: {option} is {getattr(options, option)} now"}
