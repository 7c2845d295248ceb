"""Celery and kombu have every private name that producer/private.py uses, and no other file of ours uses one."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.backends.redis import RedisBackend, ResultConsumer
from celery.result import AsyncResult
from kombu import Connection, Producer
from kombu.transport.redis import Channel

from tests.support.paths import ROOT
from tests.support.private_names import assert_known, listed_names


def parameters(function: Callable[..., Any]) -> list[str]:
    return [*inspect.signature(function).parameters]


def attribute(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def decorated(**options: Any) -> Task:
    app = Celery(set_as_current=False)

    @app.task(name="decorated", shared=False, **options)
    def decorated(text: str) -> str:
        return text

    task: Task = app.tasks["decorated"]
    return task


def has_checked_arguments() -> bool:
    task = decorated()
    with pytest.raises(TypeError):
        task.__header__()
    task.__header__("text")
    return True


def wraps_no_run_that_has_an_original() -> bool:
    class Kept(Task):
        name = "kept"
        autoretry_for = (ValueError,)
        _orig_run = None

        def run(self) -> None: ...

    app = Celery(set_as_current=False)
    kept, wrapped = app.register_task(Kept()), decorated(autoretry_for=(ValueError,))
    return "run" not in vars(kept) and callable(wrapped._orig_run)


def routes() -> list[Any]:
    app = Celery(set_as_current=False)
    app.conf.task_routes = {"a": "b"}
    found: list[Any] = app.amqp.router.routes
    return found


def opened(name: str) -> Any:
    """An attribute of a channel that is never opened."""
    return inspect.getattr_static(Channel, name)


#: Each name of the table in producer/private.py, and whether it still is what we take it for.
NAMES: dict[str, Callable[[], bool]] = {
    "Task.__header__": has_checked_arguments,
    "Task._decorated": lambda: vars(type(decorated()))["_decorated"] is True,
    "Task._dump_pydantic_arguments": lambda: Task._dump_pydantic_arguments is None,
    "Task._orig_run": wraps_no_run_that_has_an_original,
    "celery.app.autoretry.add_autoretry_behaviour": lambda: (
        parameters(attribute("celery.app.autoretry", "add_autoretry_behaviour"))[0] == "task"
    ),
    "celery.app.annotations.resolve_all": lambda: (
        parameters(attribute("celery.app.annotations", "resolve_all")) == ["anno", "task"]
    ),
    "app.annotations": lambda: isinstance(Celery(set_as_current=False).annotations, tuple),
    "celery.utils.functional.head_from_fun": lambda: (
        parameters(attribute("celery.utils.functional", "head_from_fun")) == ["fun", "bound"]
    ),
    "celery.utils.saferepr.saferepr": lambda: (
        parameters(attribute("celery.utils.saferepr", "saferepr"))[:2] == ["o", "maxlen"]
    ),
    "app.amqp.argsrepr_maxsize": lambda: isinstance(Celery(set_as_current=False).amqp.argsrepr_maxsize, int),
    "celery.app.routes.MapRoute": lambda: inspect.isclass(attribute("celery.app.routes", "MapRoute")),
    "app.amqp.router.routes": lambda: [type(route).__name__ for route in routes()] == ["MapRoute"],
    "Signal.receivers": lambda: isinstance(signals.before_task_publish.receivers, list),
    "AsyncResult._maybe_set_cache": lambda: parameters(AsyncResult._maybe_set_cache) == ["self", "meta"],
    "RedisBackend.ensure": lambda: parameters(RedisBackend.ensure)[:3] == ["self", "fun", "args"],
    "RedisBackend.mget": lambda: parameters(RedisBackend.mget) == ["self", "keys"],
    "RedisBackend.get_key_for_task": lambda: parameters(RedisBackend.get_key_for_task)[:2] == ["self", "task_id"],
    "RedisBackend.decode_result": lambda: parameters(RedisBackend.decode_result) == ["self", "payload"],
    "ResultConsumer.drain_events": lambda: parameters(ResultConsumer.drain_events) == ["self", "timeout"],
    "ResultConsumer._pubsub": lambda: ResultConsumer._pubsub is None,
    "ResultConsumer._locked": lambda: parameters(ResultConsumer._locked) == ["self"],
    "Connection._reraise_as_library_errors": lambda: parameters(Connection._reraise_as_library_errors)[0] == "self",
    "Producer._batch_local": lambda: Producer(None)._batch_local is not None,
    "Channel._q_for_pri": lambda: parameters(Channel._q_for_pri) == ["self", "queue", "pri"],
    "Channel._create_client": lambda: parameters(Channel._create_client)[0] == "self",
    "Channel.pool": lambda: isinstance(opened("pool"), property),
    "Channel.connection.client.declared_entities": lambda: Connection("memory://").declared_entities == set(),
}


@pytest.mark.parametrize("name", NAMES)
def test_celery_and_kombu_have_the_private_name(name: str) -> None:
    assert_known(name, NAMES[name])


def test_a_context_of_kombus_turns_the_redis_clients_errors_into_kombus() -> None:
    from batchery.producer import private
    from kombu.exceptions import OperationalError

    connection = Connection("memory://")
    with pytest.raises(OperationalError), private.kombu_errors(connection):
        raise connection.recoverable_connection_errors[0]


def test_a_producer_tells_whether_it_collects_a_batch() -> None:
    from batchery.producer import private

    with Connection("memory://") as connection, Producer(connection) as producer:
        assert not private.collects_batch(producer)
        with producer.batch():
            assert private.collects_batch(producer)


def test_the_table_of_private_names_lists_every_name_that_has_a_test() -> None:
    producers, _ = listed_names()
    assert sorted(producers) == sorted(NAMES)


def private_attributes(file: Path) -> Iterator[tuple[str, bool]]:
    """Each attribute of a file that begins with `_`, and whether the file itself defines it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node.name, True
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            yield node.attr, isinstance(node.ctx, ast.Store)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, True


#: The folders whose files use private names through producer/private.py only.
@pytest.mark.parametrize("folder", ["producer", "worker"])
def test_no_other_file_uses_a_private_name_of_celerys_or_kombus(folder: str) -> None:
    files = [file for file in (ROOT / folder).rglob("*.py") if file.name != "private.py"]
    names = {file: [*private_attributes(file)] for file in files}
    ours = {name for found in names.values() for name, is_ours in found if is_ours}
    ours |= {"_replace", "_exit"}  # of every NamedTuple, and of the standard library's os
    foreign = [
        (file.name, name)
        for file, found in names.items()
        for name, is_ours in found
        if not is_ours and name not in ours
    ]
    assert not foreign


def test_the_file_of_private_names_imports_nothing_of_celerys_worker() -> None:
    tree = ast.parse((ROOT / "producer/private.py").read_text())
    imported = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imported
    assert not [name for name in imported if name.startswith("celery.worker")]
