"""Celery and kombu have the private names that the worker uses: a new release breaks the test of what it changed."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import click
import pytest
import redis
from batchery.producer import private
from celery import Celery, Task
from celery.app import amqp, trace
from celery.backends import redis as redis_backend
from celery.backends.redis import RedisBackend
from celery.exceptions import CeleryCommandException
from celery.worker import control, state, strategy
from celery.worker.consumer import Consumer, tasks
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request
from kombu import Consumer as KombuConsumer
from kombu.serialization import registry
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from tests.support.private_names import assert_known, listed_names


def takes(function: Callable[..., Any], *names: str) -> bool:
    """Whether a function's first parameters are these."""
    return [*inspect.signature(function).parameters][: len(names)] == [*names]


def keeps_many_requests() -> bool:
    """Whether a weak set holds exactly the items that were added in bulk and not discarded again."""

    class Item:
        pass

    items, weak_set = [Item() for _ in range(3)], WeakSet[Item]()
    private.add_to_weak_set(weak_set, items)
    private.discard_from_weak_set(weak_set, items[:1])
    return set(weak_set) == {*items[1:]} and items[0] not in weak_set


def sets(cls: type, attribute: str) -> bool:
    """Whether a class, or one of its instances, has an attribute."""
    return hasattr(cls, attribute) or f"self.{attribute} = " in inspect.getsource(cls)


def request_takes() -> set[str]:
    return {*inspect.signature(Request.__init__).parameters}


#: Each name of the worker's table in producer/private.py, and whether it still is what we take it for.
NAMES: dict[str, Callable[[], bool]] = {
    "Consumer.create_task_handler": lambda: takes(Consumer.create_task_handler, "self", "promise"),
    "Consumer.on_task_request": lambda: takes(Consumer.__init__, "self", "on_task_request", "init_callback"),
    "Consumer.call_soon_ack": lambda: takes(Consumer.call_soon_ack, "self", "p", "args", "kwargs"),
    "Consumer.on_invalid_task": lambda: takes(Consumer.on_invalid_task, "self", "body", "message", "exc"),
    "Consumer.on_decode_error": lambda: takes(Consumer.on_decode_error, "self", "message", "exc"),
    "Consumer.on_unknown_task": lambda: takes(Consumer.on_unknown_task, "self", "body", "message", "exc"),
    "Consumer.on_unknown_message": lambda: takes(Consumer.on_unknown_message, "self", "body", "message"),
    "Consumer.on_close": lambda: takes(Consumer.on_close, "self"),
    "Consumer.stop": lambda: takes(Consumer.stop, "self"),
    "Consumer.shutdown": lambda: takes(Consumer.shutdown, "self"),
    "Consumer.cancel_active_requests": lambda: takes(Consumer.cancel_active_requests, "self"),
    "Consumer.Blueprint.default_steps": lambda: (
        "celery.worker.consumer.tasks:Tasks" in Consumer.Blueprint.default_steps and bool(Tasks.name)
    ),
    "Consumer.Blueprint.start": lambda: (
        takes(Consumer.Blueprint.start, "self", "parent")
        and "blueprint.start(self)" in inspect.getsource(Consumer.start)
        and redis.ConnectionError in kombu_redis.get_redis_error_classes().connection_errors
    ),
    "Consumer.hub": lambda: sets(Consumer, "hub"),
    "Consumer.task_consumer": lambda: "c.task_consumer = " in inspect.getsource(tasks),
    "Consumer.event_dispatcher": lambda: "self.event_dispatcher" in inspect.getsource(Consumer),
    "Consumer.connection_errors": lambda: sets(Consumer, "connection_errors"),
    "Consumer.disable_rate_limits": lambda: sets(Consumer, "disable_rate_limits"),
    "Consumer.task_buckets": lambda: sets(Consumer, "task_buckets"),
    "app.amqp.Consumer": lambda: (
        issubclass(amqp.AMQP.Consumer, KombuConsumer) and "self.Consumer(" in inspect.getsource(amqp.AMQP.TaskConsumer)
    ),
    "app.amqp.Router": lambda: takes(amqp.AMQP.Router, "self", "queues", "create_missing"),
    "app.amqp.queues": lambda: [*Celery(set_as_current=False).amqp.queues.consume_from] == ["celery"],
    "kombu.Consumer._basic_consume": lambda: takes(KombuConsumer._basic_consume, "self", "queue"),
    "kombu.Consumer._active_tags": lambda: sets(KombuConsumer, "_active_tags"),
    "Channel.priority_steps": lambda: kombu_redis.Channel.priority_steps == kombu_redis.PRIORITY_STEPS,
    "Channel.sep": lambda: isinstance(kombu_redis.Channel.sep, str),
    "Channel.global_keyprefix": lambda: kombu_redis.Channel.global_keyprefix == "",
    "virtual.Channel.codecs": lambda: "base64" in virtual.Channel.codecs,
    "Channel.conn_or_acquire": lambda: takes(kombu_redis.Channel.conn_or_acquire, "self", "client"),
    "virtual.Message.serializable": lambda: takes(virtual.Message.serializable, "self"),
    "virtual.Channel.decode_body": lambda: takes(virtual.Channel.decode_body, "self", "body", "encoding"),
    "state.requests": lambda: isinstance(state.requests, dict),
    "state.reserved_requests": lambda: isinstance(state.reserved_requests, WeakSet),
    "state.active_requests": lambda: isinstance(state.active_requests, WeakSet),
    "WeakSet.data": lambda: keeps_many_requests(),
    "state.scheduled_requests": lambda: isinstance(state.scheduled_requests, WeakSet),
    "state.total_count": lambda: isinstance(state.total_count, Counter),
    "state.all_total_count": lambda: isinstance(state.all_total_count[0], int),
    "state.revoked": lambda: "x" not in state.revoked,
    "state.revoked_stamps": lambda: isinstance(state.revoked_stamps, dict),
    "state.should_stop": lambda: state.should_stop in (None, False),
    "state.should_terminate": lambda: state.should_terminate in (None, False),
    "Request.__init__": lambda: (
        request_takes()
        >= {*"message on_ack on_reject app hostname eventer task connection_errors body headers decoded utc".split()}
    ),
    "Request.on_success": lambda: takes(Request.on_success, "self", "failed__retval__runtime"),
    "Request.on_accepted": lambda: takes(Request.on_accepted, "self", "pid", "time_accepted"),
    "Request.revoked": lambda: takes(Request.revoked, "self"),
    "Request._payload": lambda: hasattr(Request, "_payload"),
    "trace.build_tracer": lambda: takes(trace.build_tracer, "name", "task", "loader", "hostname"),
    "trace.task_has_custom": lambda: takes(trace.task_has_custom, "task", "attr"),
    "Task.__trace__": lambda: Celery(set_as_current=False).Task.__trace__ is None,
    "RedisBackend.on_chord_part_return": lambda: takes(RedisBackend.on_chord_part_return, "self", "request", "state"),
    "RedisBackend.chord_expires": lambda: "self.chord_expires" in inspect.getsource(redis_backend),
    "RedisBackend._chord_zset": lambda: hasattr(RedisBackend, "_chord_zset"),
    "RedisBackend._chord_result_expires": lambda: hasattr(RedisBackend, "_chord_result_expires"),
    "celery.backends.redis.CHORD_PART_RETURN_LUA": lambda: "KEYS" in redis_backend.CHORD_PART_RETURN_LUA,
    "celery.backends.redis.CHORD_CLEANUP_LUA": lambda: "KEYS" in redis_backend.CHORD_CLEANUP_LUA,
    "celery.backends.redis.CHORD_CLAIM_EXTEND_LUA": lambda: "KEYS" in redis_backend.CHORD_CLAIM_EXTEND_LUA,
    "Task._backend": lambda: Celery(set_as_current=False).Task._backend is None,
    "RedisBackend._store_result": lambda: takes(RedisBackend._store_result, "self", "task_id", "result", "state"),
    "RedisBackend._encode": lambda: takes(RedisBackend._encode, "self", "data"),
    "RedisBackend._set_with_state": lambda: takes(RedisBackend._set_with_state, "self", "key", "value", "state"),
    "kombu.serialization.registry._encoders": lambda: callable(registry._encoders["json"].encoder),
    "Channel._connparams": lambda: takes(kombu_redis.Channel._connparams, "self", "asynchronous"),
    "AMQP._retry_publish": lambda: (
        takes(amqp.AMQP._retry_publish, "self", "publish")
        and "app.amqp._retry_publish(" in inspect.getsource(trace)
        and "app.amqp._retry_publish(" in inspect.getsource(redis_backend)
    ),
    "Task.retry": lambda: "raise Reject(exc, requeue=False)" in inspect.getsource(Task.retry),
    "Backend.chord_error_from_stack": lambda: takes(RedisBackend.chord_error_from_stack, "self", "callback", "exc"),
}


@pytest.mark.parametrize("name", NAMES)
def test_celery_and_kombu_have_the_private_name(name: str) -> None:
    assert_known(name, NAMES[name])


def test_the_table_of_the_workers_private_names_lists_every_name_that_has_a_test() -> None:
    _, workers = listed_names()
    assert sorted(workers) == sorted(NAMES)


def test_celery_hands_accepted_requests_to_on_task_request() -> None:
    assert "consumer.on_task_request" in inspect.getsource(strategy.default)


def test_the_handler_of_messages_takes_one_message() -> None:
    consumer = Consumer.__new__(Consumer)
    consumer.strategies, consumer.on_task_message = {}, set()
    assert [*inspect.signature(consumer.create_task_handler()).parameters] == ["message"]


def test_the_router_takes_its_queues_and_tells_a_tasks_route() -> None:
    app = Celery(broker="memory://", set_as_current=False)
    router = app.amqp.Router({**app.amqp.queues}, create_missing=False)
    assert takes(router.route, "options", "name", "args", "kwargs", "task_type")
    assert router.route({}, "any")["queue"].name == "celery"
    app.close()


def test_remote_control_commands_are_registered_by_name() -> None:
    assert {"batching", "batching_set"} <= {*control.Panel.meta}
    assert isinstance(CeleryCommandException("m", exit_code=1), click.ClickException)


def test_kombus_priorities_and_separator_are_those_that_queues_have_by_default() -> None:
    from batchery.worker.broker import Queue

    assert Queue("q").separator == kombu_redis.Channel.sep
    assert list(Queue("q").priorities) == kombu_redis.PRIORITY_STEPS
    assert Queue("q").prefix == kombu_redis.Channel.global_keyprefix


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (state.task_reserved, ["request"]),
        (state.task_accepted, ["request"]),
        (state.task_ready, ["request", "successful"]),
    ],
)
def test_celery_notes_requests_one_by_one(function: Callable[..., Any], expected: list[str]) -> None:
    assert takes(function, *expected)


def test_the_tracer_returns_four_things() -> None:
    app = Celery(broker="memory://", set_as_current=False)

    @app.task(shared=False, name="t")
    def task() -> int:
        return 7

    result, info, _runtime, text = trace.build_tracer("t", app.tasks["t"], app=app)(
        "an-id", (), {}, {"is_eager": False}
    )
    assert (result, info, text) == (7, None, "7")
    app.close()


def test_a_kombu_message_is_made_of_a_payload_and_a_channel() -> None:
    assert takes(virtual.Message.__init__, "self", "payload", "channel")
    assert {"basic_ack", "basic_reject"} <= {*dir(virtual.Channel)}
