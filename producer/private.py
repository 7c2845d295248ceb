"""The one file through which Batchery uses names that Celery and kombu keep to themselves.

A name is private here if it begins with `_` or if their documents do not promise it. Their next release may change any
of these names; then tests/producer/test_private.py fails and says which one. Callers import this file, so it imports
nothing of `celery.worker`.

| name | what for | used here by | and then by |
|---|---|---|---|
| `Task.__header__` | checks a call's arguments where it is sent | `ARGUMENT_CHECK` | batch_task |
| `Task._decorated` | tells a class that `app.task` made of a function | `DECORATED` | batch_task |
| `Task._dump_pydantic_arguments` | not None with `pydantic=True` | `pydantic_dump` | definition |
| `Task._orig_run` | Celery retries no `run` of a task that has it | `ORIGINAL_RUN`, `retried` | batch_task, local |
| `celery.app.autoretry.add_autoretry_behaviour` | retries a function as Celery does `run` | `retried` | local, replay |
| `celery.app.annotations.resolve_all`, `app.annotations` | what `task_annotations` say | `annotations` | batch_task |
| `celery.utils.functional.head_from_fun` | makes a quick check of arguments | re-export | signature |
| `celery.utils.saferepr.saferepr`, `app.amqp.argsrepr_maxsize` | arguments for logs | `argsrepr_size` | client |
| `celery.app.routes.MapRoute`, `app.amqp.router.routes` | routes never see arguments | `routes_by_name` | client |
| `Signal.receivers` | what listens to a signal | `receivers` | client |
| `AsyncResult._maybe_set_cache` | gives a result what `read_outcomes` read for it | `set_outcome` | client |
| `RedisBackend.mget`, `.ensure`, `.get_key_for_task`, `.decode_result` | many results | `read_outcomes` | client |
| `ResultConsumer.drain_events`, `._pubsub`, `._locked` | asks whether results still arrive | `check_results` | client |
| `Connection._reraise_as_library_errors` | raises Redis's errors as kombu's | `kombu_errors` | client |
| `Producer._batch_local` | whether this thread is within `producer.batch()` | `collects_batch` | publisher |
| `Channel._q_for_pri` | the Redis key of a queue and priority | `queue_key` | publisher |
| `Channel._create_client`, `.pool` | a Redis client that outlives one message | `redis_client` | publisher |
| `Channel.connection.client.declared_entities` | hashes of declared queues | `declared_entities` | publisher |

The worker uses these, too. Only what begins with `_` or belongs to a backend is used through this file, because the
rest is imported from `celery.worker` or overridden in a class.

| name | what for | who uses it |
|---|---|---|
| `Consumer.create_task_handler`, `.on_task_request`, `.call_soon_ack` | overridden | consumer |
| `Consumer.on_invalid_task`, `.on_decode_error`, `.on_unknown_message`, `.on_unknown_task` | overridden | refusals |
| `Consumer.on_close`, `.stop`, `.shutdown`, `.cancel_active_requests` | overridden | consumer |
| `Consumer.Blueprint.default_steps`, `.start` | adds statistics; a refusal is a lost connection | consumer, broker |
| `Consumer.hub`, `.task_consumer`, `.event_dispatcher`, `.connection_errors` | read | engine_parts, events, wire |
| `Consumer.disable_rate_limits`, `.task_buckets` | which tasks have a rate limit | fetch |
| `app.amqp.Consumer` | replaces the class of the task consumer | consumer |
| `app.amqp.Router`, `.queues` | where calls of a task go | settings |
| `kombu.Consumer._basic_consume`, `._active_tags` | fetches nothing from a queue | consumer |
| `Channel.priority_steps`, `.sep`, `.global_keyprefix` | the keys of a queue | engine_parts |
| `virtual.Channel.codecs`, `.decode_body` | decodes a message's body | kombu_message |
| `Channel.conn_or_acquire`, `virtual.Message.serializable` | queues a broadcast message once more | broadcast |
| `state.requests`, `.reserved_requests`, `.active_requests` | what `inspect` shows | worker_state, bridge |
| `WeakSet.data` | many requests at once | worker_state |
| `state.scheduled_requests`, `.total_count`, `.all_total_count` | what `inspect` shows | worker_state, bridge |
| `state.revoked`, `.revoked_stamps` | what was revoked | fetch, settle |
| `state.should_stop` | ends the worker with an exit code | settle |
| `state.should_terminate` | whether a cold shutdown has begun | worker_state |
| `Request.__init__`, `.on_success`, `.on_accepted`, `.revoked` | Celery's request for a job | kombu_message, settle |
| `Request._payload` | arguments and embedded signatures | request, replay |
| `trace.build_tracer`, `.task_has_custom` | stores and announces outcomes; which hooks a task has | replay, settle |
| `Task.__trace__` | the tracer of a task | replay |
| `RedisBackend.on_chord_part_return`, `.chord_expires` | how the parts of a chord are kept | store |
| `RedisBackend._chord_zset`, `._chord_result_expires` | the same | store |
| `celery.backends.redis.CHORD_PART_RETURN_LUA`, `.CHORD_CLEANUP_LUA`, `.CHORD_CLAIM_EXTEND_LUA` | the same | postpone |
| `Task._backend` | whether a task has a backend of its own | store |
| `RedisBackend._store_result`, `._encode`, `._set_with_state` | Celery's own, or overridden | store, postpone |
| `kombu.serialization.registry._encoders` | whether "json" is kombu's own serializer | store |
| `Channel._connparams` | raises AttributeError once the channel's connection is lost | `is_lost_channel` |
| `AMQP._retry_publish` | sends the callbacks of a task that has ended | `wrap_callbacks` |
| `Task.retry` | raises `Reject` where the retry could not be sent | `unsent_retry` |
| `Backend.chord_error_from_stack` | overridden, so that a lost connection is no failure | postpone |
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import attrgetter, methodcaller
from traceback import walk_tb
from typing import Any, cast
from weakref import ref

import redis
from celery import Celery, Task
from celery.app.annotations import resolve_all
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.routes import MapRoute
from celery.backends import base as base_backend
from celery.backends import redis as redis_backend
from celery.backends.redis import RedisBackend, ResultConsumer, SentinelBackend
from celery.exceptions import Reject
from celery.utils.functional import head_from_fun as head_from_fun
from celery.utils.saferepr import saferepr as saferepr
from kombu import Consumer
from kombu.serialization import registry
from kombu.transport.redis import Channel
from kombu.utils import json as kombu_json

ARGUMENT_CHECK, DECORATED, ORIGINAL_RUN = "__header__", "_decorated", "_orig_run"

#: SHA-1 of the script by which Celery 5.7 adds a part to a chord. With another one, Celery has to add all parts itself.
_KNOWN_PART_SCRIPT = "b8fc152c83a7e634103ccebd49dcd3146a8f4366"

#: By SHA-1, scripts by which Celery adds a chord's part, forgets a chord when its callback is sent, and keeps it ours.
CHORD_SCRIPTS = {
    hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest(): script
    for script in (
        redis_backend.CHORD_PART_RETURN_LUA,
        redis_backend.CHORD_CLEANUP_LUA,
        redis_backend.CHORD_CLAIM_EXTEND_LUA,
    )
}
PART_SCRIPT, CLEANUP_SCRIPT, _ = CHORD_SCRIPTS

argsrepr_size: Callable[[Celery], int] = attrgetter("amqp.argsrepr_maxsize")
pydantic_dump: Callable[[Any], Any] = attrgetter("_dump_pydantic_arguments")
receivers: Callable[[Any], list[Any]] = attrgetter("receivers")
kombu_errors: Callable[[Any], AbstractContextManager[None]] = methodcaller("_reraise_as_library_errors")
declared_entities: Callable[[Any], set[int]] = attrgetter("connection.client.declared_entities")


def retried(task: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    twin = object.__new__(type(task))
    vars(twin).update({name: value for name, value in vars(task).items() if name != ORIGINAL_RUN}, run=run)
    add_autoretry_behaviour(twin)
    return cast(Callable[..., Any], twin.run)


def annotations(task_class: Any) -> Iterable[Mapping[str, Any]]:
    yield from resolve_all(task_class.app.annotations, task_class)


def routes_by_name(app: Celery) -> bool:
    return all(isinstance(route, MapRoute) for route in app.amqp.router.routes)


def read_outcomes(backend: Any, ids: Sequence[str], timeout: float | None) -> dict[str, dict[str, Any]]:
    keys = [backend.get_key_for_task(task_id) for task_id in ids]
    # A lost connection is made again, as Celery's own `get` does.
    stored = backend.ensure(backend.mget, (keys,), **({} if timeout is None else {"timeout": max(timeout, 0.01)}))
    return {task_id: backend.decode_result(value) for task_id, value in zip(ids, stored, strict=True) if value}


def set_outcome(result: Any, outcome: Mapping[str, Any]) -> None:
    result._maybe_set_cache(outcome)


#: Error codes of a server that refuses to announce results, and will announce them later.
_REFUSED_FOR_A_TIME = frozenset("BUSY LOADING MASTERDOWN".split())


class CheckedResultConsumer(ResultConsumer):
    """Asks the server now and then over the connection on which results are announced, because it may have been lost.

    Otherwise a caller would wait for ever. Celery then subscribes anew, and reads what was announced meanwhile.
    """

    _next_check, _is_refused = 0.0, False

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for results, and first see whether they can still arrive."""
        now = time.monotonic()
        try:
            if self._is_refused:
                with self._locked(), self.reconnect_on_error():
                    raise redis.ConnectionError("the server refused to announce results on this connection")
                self._is_refused = False
            if now >= self._next_check:
                self._next_check = now + 1.0
                self._check()
            super().drain_events(timeout)
        except redis.ResponseError as exc:
            # It may answer the call of another thread, or one that has failed long ago.
            if (exc.status_code or str(exc).partition(" ")[0]) not in _REFUSED_FOR_A_TIME:
                raise
            self._is_refused = True
            time.sleep(0.1 if timeout is None else min(timeout, 0.1))  # noqa: TID251 - as Celery's own wait

    def _check(self) -> None:
        with self._locked(), self.reconnect_on_error():
            pubsub = self._pubsub
            if pubsub is None or not pubsub.subscribed or pubsub.connection is None:
                return
            if pubsub.health_check_response_counter and not pubsub.connection.can_read(timeout=0):
                raise redis.ConnectionError("nothing arrives on the connection for results any more")
            pubsub.check_health()  # asks, if the connection was silent for its `health_check_interval`


def check_results(backend: Any) -> None:
    consumer = getattr(backend, "result_consumer", None)
    if type(consumer) is ResultConsumer:
        consumer.__class__ = CheckedResultConsumer


def collects_batch(producer: Any) -> bool:
    return getattr(producer._batch_local, "current", None) is not None


def queue_key(channel: Any, queue: str, priority: int) -> str:
    return str(channel._q_for_pri(queue, priority))


def redis_client(channel: Any) -> Any:
    client = getattr(channel, "_batchery_client", None)
    # The channel makes a new client for each message, which costs as much as sending the message. Its pool is another
    # once it has connected again.
    if client is None or client.connection_pool is not channel.pool:
        client = channel._batchery_client = channel._create_client()
    return client


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


#: The arguments, keyword arguments and embedded signatures of a worker's `Request`.
payload_of: Callable[[Any], tuple[Any, Any, Any]] = attrgetter("_payload")


def keeps_chord_parts_as_known(backend: RedisBackend) -> bool:
    """Whether a Redis backend keeps the parts of chords as `settle.lua` does; else Celery has to add all of them."""
    is_stock = type(backend).on_chord_part_return is RedisBackend.on_chord_part_return
    return is_stock and PART_SCRIPT == _KNOWN_PART_SCRIPT


#: What storing a result would call: where any of these is not Celery's own, the backend has to be asked.
_BYPASSED = frozenset(
    "mark_as_done store_result _store_result _ensure_retryable encode_result encode _encode _get_result_meta "
    "_set_with_state set _set ensure get_key_for_task get_key_for_group _get_key_for current_task_children "
    "_get_task_meta_for get on_chord_part_return".split()
)
_functions = attrgetter(*sorted(_BYPASSED))
#: Celery's own, unless one was replaced before this is imported: a function tells by its globals where it was written.
_OWN_FUNCTIONS = tuple(
    function
    for function in _functions(RedisBackend)
    if getattr(function, "__globals__", None) in (vars(base_backend), vars(redis_backend))
)


def is_changed(backend: Any) -> bool:
    """Whether this one backend has a function of its own in place of one of its class."""
    return not _BYPASSED.isdisjoint(vars(backend))


def stores_as_known(backend: Any) -> bool:
    """Whether a backend is Celery's for Redis or Sentinel, unchanged, with a serializer that writes what ours does."""
    encoder = getattr(registry._encoders.get("json"), "encoder", None)
    return (
        type(backend) in (RedisBackend, SentinelBackend)
        and not is_changed(backend)
        and _functions(type(backend)) == _OWN_FUNCTIONS
        and (backend.serializer != "json" or encoder is kombu_json.dumps)
    )


def has_own_backend(task: Any) -> bool:
    """Whether a task's results go to another backend than its app's."""
    return type(task).backend is not Task.backend or task._backend is not None


def chord_retention(backend: RedisBackend) -> tuple[bool, int]:
    """Return whether a Redis backend keeps chords in order, and its seconds for a chord of groups; 0 is for ever."""
    return bool(backend._chord_zset), int(backend._chord_result_expires or 0)


def is_lost_channel(error: BaseException) -> bool:
    return _raised_by(error, Channel._connparams)


def unsent_retry(error: Any) -> BaseException | None:
    error = getattr(error, "exc", error)  # as Celery wraps it for another process
    return error.reason if isinstance(error, Reject) and _raised_by(error, Task.retry) else None


def _raised_by(error: BaseException, function: Any) -> bool:
    return [frame.f_code for frame, _ in walk_tb(error.__traceback__)][-1:] == [function.__code__]


def wrap_callbacks(app: Celery, send_by: Callable[..., object]) -> None:
    app.amqp._retry_publish = partial(send_by, app.amqp._retry_publish)


# Python's own `update` and `difference_update` of weak sets go item by item, in Python: on the hub's thread that took a
# tenth of the time of a no-op task. The set is not told when an item dies, so each has to be discarded.


def add_to_weak_set(weak_set: Any, items: Iterable[object]) -> None:
    weak_set.data.update(map(ref, items))


def discard_from_weak_set(weak_set: Any, items: Iterable[object]) -> None:
    weak_set.data.difference_update(map(ref, items))
