"""The one file through which Batchery uses names that Celery and kombu keep to themselves.

A name is private here if it begins with `_` or if their documents do not promise it. Their next release may change any
of these names; then tests/producer/test_private.py fails and says which one. The producer imports this file, so it
imports nothing of `celery.worker`.

| name | what for | who uses it |
|---|---|---|
| `Task.__header__` | checks a call's arguments where it is sent | client, batch_task |
| `Task._decorated` | tells a class that the decorator made | batch_task |
| `Task._dump_pydantic_arguments` | tells `pydantic=True` | definition |
| `Task._orig_run` | keeps Celery from wrapping `run` for `autoretry_for` | batch_task, local |
| `celery.app.autoretry.add_autoretry_behaviour` | retries one call as Celery does | local |
| `celery.app.annotations.resolve_all`, `app.annotations` | which options `task_annotations` set | definition |
| `celery.utils.functional.head_from_fun` | makes a quick check of arguments | signature |
| `celery.utils.saferepr.saferepr`, `app.amqp.argsrepr_maxsize` | what logs show of arguments | client |
| `celery.app.routes.MapRoute`, `app.amqp.router.routes` | whether a route looks at arguments | client |
| `Signal.receivers` | whether anything listens to a signal | client |
| `AsyncResult._maybe_set_cache` | gives a result its value without another round trip | client |
| `RedisBackend.mget`, `.get_key_for_task`, `.decode_result` | reads many results in one round trip | client |
| `Connection._reraise_as_library_errors` | raises Redis's errors as kombu's | client |
| `Producer._batch_local` | whether kombu is collecting messages for one round trip | publisher |
| `Channel._q_for_pri` | the Redis key of a queue and priority | publisher |
| `Channel._create_client`, `.pool` | a Redis client that outlives one message | publisher |
| `Channel.connection.client.declared_entities` | whether a queue has been declared | publisher |
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from celery import Celery
from celery.app.annotations import resolve_all
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.routes import MapRoute
from celery.utils.functional import head_from_fun
from celery.utils.saferepr import saferepr

__all__ = ["add_autoretry_behaviour", "head_from_fun", "saferepr"]

#: Celery's name for the `run` that it has wrapped for `autoretry_for`. It wraps no task that has this attribute.
ORIGINAL_RUN = "_orig_run"


def set_argument_check(task_class: Any, check: Callable[..., Any]) -> None:
    """Let Celery call `check(*args, **kwargs)` before it sends a call of the task."""
    task_class.__header__ = staticmethod(check)


def check_arguments(task: Any, args: Sequence[Any]) -> None:
    """Raise a TypeError unless the arguments fit the task's signature."""
    task.__header__(*args)


def is_decorated(task_class: Any) -> bool:
    """Whether `app.task` made this very class from a function."""
    return bool(vars(task_class).get("_decorated"))


def uses_pydantic(task_class: Any) -> bool:
    """Whether the task was defined with `pydantic=True`."""
    return task_class._dump_pydantic_arguments is not None


def annotations(task_class: Any) -> Iterable[Mapping[str, Any]]:
    """Return what the app's `task_annotations` say of a bound class."""
    found: Iterable[Mapping[str, Any]] = resolve_all(task_class.app.annotations, task_class)
    return found


def argsrepr_size(app: Celery) -> int:
    """Return how many characters of a call's arguments logs show at most."""
    size: int = app.amqp.argsrepr_maxsize
    return size


def routes_by_name(app: Celery) -> bool:
    """Whether every route of the app is a map of task names, so that none can look at a call's arguments."""
    return all(isinstance(route, MapRoute) for route in app.amqp.router.routes)


def has_receivers(signal: Any) -> bool:
    """Whether anything is connected to one of Celery's signals."""
    return bool(signal.receivers)


def set_outcome(result: Any, meta: Mapping[str, Any]) -> None:
    """Give an `AsyncResult` the outcome that `read_outcomes` read for it."""
    result._maybe_set_cache(meta)


def read_outcomes(backend: Any, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a Redis backend has stored for tasks, by task id, in one round trip; states of unready ones too."""
    stored = backend.mget([backend.get_key_for_task(task_id) for task_id in ids])
    return {task_id: backend.decode_result(value) for task_id, value in zip(ids, stored, strict=True) if value}


def kombu_errors(connection: Any) -> AbstractContextManager[None]:
    """Return a context that raises errors of the Redis client as kombu's `OperationalError`."""
    context: AbstractContextManager[None] = connection._reraise_as_library_errors()
    return context


def collects_batch(producer: Any) -> bool:
    """Whether this thread is within the producer's `batch()`, which sends messages later and together."""
    return getattr(producer._batch_local, "current", None) is not None


def queue_key(channel: Any, queue: str, priority: int) -> str:
    """Return the Redis key of the list that holds a queue's messages of this priority."""
    key: str = channel._q_for_pri(queue, priority)
    return key


def redis_client(channel: Any) -> Any:
    """Return a Redis client of the channel, the same for each message.

    The channel itself makes a new client for each message, which costs as much as sending the message.
    """
    client = getattr(channel, "_batchery_client", None)
    if client is None or client.connection_pool is not channel.pool:  # the channel has connected again
        client = channel._batchery_client = channel._create_client()
    return client


def declared_entities(channel: Any) -> set[int]:
    """Return the hashes of the queues and exchanges that the channel's connection has declared."""
    declared: set[int] = channel.connection.client.declared_entities
    return declared
