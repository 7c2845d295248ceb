"""The names of Celery's and kombu's that the worker relies on: a new release breaks the test of what it changed."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import click
import pytest
from celery import Celery
from celery.app import amqp, trace
from celery.exceptions import CeleryCommandException
from celery.worker import control, state, strategy
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request
from celery.worker.state import requests
from kombu import Consumer as KombuConsumer
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual


def parameters(function: Callable[..., Any]) -> list[str]:
    return [str(parameter) for parameter in inspect.signature(function).parameters.values()]


def names(function: Callable[..., Any]) -> list[str]:
    return [*inspect.signature(function).parameters]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("__init__", ["self", "on_task_request", "init_callback"]),
        ("create_task_handler", ["self", "promise"]),
        ("on_invalid_task", ["self", "body", "message", "exc"]),
        ("on_decode_error", ["self", "message", "exc"]),
        ("on_unknown_message", ["self", "body", "message"]),
        ("call_soon_ack", ["self", "p", "args", "kwargs"]),
        ("stop", ["self"]),
        ("shutdown", ["self"]),
    ],
)
def test_a_consumers_methods_take_what_ours_take(method: str, expected: list[str]) -> None:
    assert names(getattr(Consumer, method))[: len(expected)] == expected


@pytest.mark.parametrize("attribute", ["task_consumer", "event_dispatcher", "hub", "strategies", "on_task_request"])
def test_a_consumer_has_the_attribute(attribute: str) -> None:
    assert f"self.{attribute}" in inspect.getsource(Consumer) or hasattr(Consumer, attribute)


def test_a_consumers_blueprint_lists_its_steps() -> None:
    assert "celery.worker.consumer.tasks:Tasks" in Consumer.Blueprint.default_steps
    assert Tasks.name


def test_the_consumer_hands_requests_to_on_task_request() -> None:
    assert "consumer.on_task_request" in inspect.getsource(strategy.default)


def test_the_handler_of_messages_takes_one_message() -> None:
    consumer = Consumer.__new__(Consumer)
    consumer.strategies, consumer.on_task_message = {}, set()
    assert names(consumer.create_task_handler()) == ["message"]


def test_the_task_consumer_is_made_by_app_amqp() -> None:
    assert "self.Consumer(" in inspect.getsource(amqp.AMQP.TaskConsumer)
    assert issubclass(amqp.AMQP.Consumer, KombuConsumer)


def test_the_router_takes_its_queues_and_tells_a_tasks_route() -> None:
    app = Celery(broker="memory://", set_as_current=False)
    assert [*app.amqp.queues.consume_from] == ["celery"]
    router = app.amqp.Router({**app.amqp.queues}, create_missing=False)
    assert names(router.route) == ["options", "name", "args", "kwargs", "task_type"]
    assert router.route({}, "any")["queue"].name == "celery"
    app.close()


def test_remote_control_commands_are_registered_by_name() -> None:
    assert {"batching", "batching_set"} <= {*control.Panel.meta}
    assert isinstance(CeleryCommandException("m", exit_code=1), click.ClickException)


def test_a_kombu_consumer_consumes_queue_by_queue() -> None:
    assert names(KombuConsumer._basic_consume)[:2] == ["self", "queue"]
    assert "_active_tags" in inspect.getsource(KombuConsumer)


@pytest.mark.parametrize("name", ["pool", "priority_steps", "sep", "global_keyprefix"])
def test_kombus_redis_channel_has_the_attribute(name: str) -> None:
    assert hasattr(kombu_redis.Channel, name)


def test_kombus_priorities_and_separator_are_those_that_queues_have_by_default() -> None:
    from batchery.worker.broker import Queue

    assert Queue("q").separator == kombu_redis.Channel.sep
    assert list(Queue("q").priorities) == kombu_redis.PRIORITY_STEPS
    assert Queue("q").prefix == kombu_redis.Channel.global_keyprefix


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("requests", dict),
        ("reserved_requests", WeakSet),
        ("active_requests", WeakSet),
        ("scheduled_requests", WeakSet),
        ("total_count", Counter),
        ("all_total_count", list),
    ],
)
def test_the_workers_state_has_the_collection(name: str, kind: type) -> None:
    assert isinstance(getattr(state, name), kind)


def test_the_workers_state_has_what_was_revoked_and_the_wish_to_stop() -> None:
    assert "x" not in state.revoked
    assert state.should_stop in (None, False)
    assert state.requests is requests


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (state.task_reserved, ["request"]),
        (state.task_accepted, ["request"]),
        (state.task_ready, ["request", "successful"]),
    ],
)
def test_the_workers_state_changes_request_by_request(function: Callable[..., Any], expected: list[str]) -> None:
    assert names(function)[: len(expected)] == expected


def test_a_request_is_made_of_these() -> None:
    used = {
        "message",
        "on_ack",
        "on_reject",
        "app",
        "hostname",
        "eventer",
        "task",
        "connection_errors",
        "body",
        "headers",
    }
    assert {*used, "decoded", "utc"} <= set(names(Request.__init__))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("on_success", ["self", "failed__retval__runtime"]),
        ("on_accepted", ["self", "pid", "time_accepted"]),
        ("revoked", ["self"]),
    ],
)
def test_a_requests_methods_take_what_ours_give(method: str, expected: list[str]) -> None:
    assert names(getattr(Request, method))[: len(expected)] == expected


def test_a_request_keeps_its_payload() -> None:
    assert hasattr(Request, "_payload")


def test_the_tracer_is_built_from_a_task_and_returns_four_things() -> None:
    assert parameters(trace.build_tracer)[:2] == ["name", "task"]
    assert {"loader", "hostname", "app"} <= set(names(trace.build_tracer))
    app = Celery(broker="memory://", set_as_current=False)

    @app.task(shared=False, name="t")
    def task() -> int:
        return 7

    result, info, _runtime, text = trace.build_tracer("t", app.tasks["t"], app=app)(
        "an-id", (), {}, {"is_eager": False}
    )
    assert (result, info, text) == (7, None, "7")
    app.close()


def test_a_task_knows_which_hooks_are_custom() -> None:
    assert names(trace.task_has_custom) == ["task", "attr"]


def test_a_kombu_message_is_made_of_a_payload_and_a_channel() -> None:
    assert names(virtual.Message.__init__)[:3] == ["self", "payload", "channel"]
    assert {"no_ack_consumers", "codecs", "decode_body", "basic_ack", "basic_reject"} <= {
        *dir(virtual.Channel),
        *vars(virtual.Channel),
        "no_ack_consumers",
    }
