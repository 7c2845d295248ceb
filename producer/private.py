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

The worker uses these, too. Only what begins with `_` or belongs to a backend is used through this file, because the
rest is imported from `celery.worker` or overridden in a class.

| name | what for | who uses it |
|---|---|---|
| `Consumer.create_task_handler`, `.on_task_request`, `.call_soon_ack` | overridden | consumer |
| `Consumer.on_invalid_task`, `.on_decode_error`, `.on_unknown_message` | overridden | consumer |
| `Consumer.on_close`, `.stop`, `.shutdown` | overridden | consumer |
| `Consumer.Blueprint.default_steps` | adds statistics to `inspect stats` | consumer |
| `Consumer.hub`, `.task_consumer`, `.event_dispatcher`, `.connection_errors` | read | consumer, events, kombu_message |
| `Consumer.disable_rate_limits`, `.task_buckets` | which tasks have a rate limit | fetch |
| `app.amqp.Consumer` | replaces the class of the task consumer | consumer |
| `app.amqp.Router`, `.queues` | where calls of a task go | settings |
| `kombu.Consumer._basic_consume`, `._active_tags` | fetches nothing from a queue | consumer |
| `Channel.priority_steps`, `.sep`, `.global_keyprefix` | the keys of a queue | consumer |
| `virtual.Channel.codecs`, `.decode_body` | decodes a message's body | kombu_message |
| `state.requests`, `.reserved_requests`, `.active_requests` | what `inspect` shows | worker_state, bridge |
| `state.scheduled_requests`, `.total_count`, `.all_total_count` | what `inspect` shows | worker_state, bridge |
| `state.revoked`, `.revoked_stamps` | what was revoked | fetch, settle |
| `state.should_stop` | ends the worker with an exit code | settle |
| `Request.__init__`, `.on_success`, `.on_accepted`, `.revoked` | Celery's request for a job | kombu_message, settle |
| `Request._payload` | arguments and embedded signatures | request, replay |
| `trace.build_tracer`, `.task_has_custom` | stores and announces outcomes; which hooks a task has | replay, settle |
| `Task.__trace__` | the tracer of a task | replay |
| `RedisBackend.on_chord_part_return`, `.chord_expires` | how the parts of a chord are kept | store |
| `RedisBackend._chord_zset`, `._chord_result_expires` | the same | store |
| `celery.backends.redis.CHORD_PART_RETURN_LUA` | the same | store |
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from celery import Celery
from celery.app.annotations import resolve_all
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.routes import MapRoute
from celery.backends.redis import CHORD_PART_RETURN_LUA, RedisBackend
from celery.utils.functional import head_from_fun
from celery.utils.saferepr import saferepr
from kombu import Consumer

__all__ = ["add_autoretry_behaviour", "head_from_fun", "saferepr"]

#: Celery's name for the `run` that it has wrapped for `autoretry_for`. It wraps no task that has this attribute.
ORIGINAL_RUN = "_orig_run"

#: SHA-1 of the script by which Celery 5.7 adds a part to a chord. With another one, Celery has to add all parts itself.
_KNOWN_PART_SCRIPT = "b8fc152c83a7e634103ccebd49dcd3146a8f4366"


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


# -- The worker's ------------------------------------------------------------------------------------------------------


class QuietConsumer(Consumer):
    """Knows the worker's queues but fetches from none of them, because the engine claims instead.

    A broadcast queue is a Redis channel and no list, so it is fetched from as ever.
    """

    def _basic_consume(self, queue: Any, *args: Any, **kwargs: Any) -> None:
        if queue.exchange.type == "fanout":
            super()._basic_consume(queue, *args, **kwargs)
        else:
            self._active_tags[queue.name] = queue.name


def payload_of(request: Any) -> tuple[Any, Any, Any]:
    """Return the arguments, keyword arguments and embedded signatures of a worker's `Request`."""
    args, kwargs, embed = request._payload
    return args, kwargs, embed


def keeps_chord_parts_as_known(backend: RedisBackend) -> bool:
    """Whether a Redis backend keeps the parts of chords as `settle.lua` does; else Celery has to add all of them."""
    script = hashlib.sha1(CHORD_PART_RETURN_LUA.encode(), usedforsecurity=False).hexdigest()
    is_stock = type(backend).on_chord_part_return is RedisBackend.on_chord_part_return
    return is_stock and script == _KNOWN_PART_SCRIPT


def chord_retention(backend: RedisBackend) -> tuple[bool, int]:
    """Return whether a Redis backend keeps chords in order, and its seconds for a chord of groups; 0 is for ever."""
    return bool(backend._chord_zset), int(backend._chord_result_expires or 0)
