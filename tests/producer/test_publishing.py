"""The fast path to Redis sends what Celery and kombu would send; calls that it does not take go through kombu."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import create_autospec

import celery
import numpy as np
import pytest
import redis
from batchery.producer.client import ENQUEUED_AT
from batchery.producer.codec.serializer import loads, summarise
from batchery.worker.consumer.wire.decode import decode
from celery import Celery
from celery.signals import before_task_publish
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError, OperationalError
from kombu.messaging import Producer
from kombu.utils import json as kombu_json
from redis.connection import Connection

from batchery import BatchTask
from tests.support.messages import ACCEPT

VECTOR = np.arange(4, dtype=np.float32)
ARGS = (["ü", 1.5, None],)
NOW = dt.datetime(2126, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@contextmanager
def echo_task(broker: str, **options: Any) -> Iterator[Any]:
    with Celery(broker=broker, set_as_current=False) as app:

        @app.task(base=BatchTask, name="echo", ignore_result=True, shared=False, **options)
        def echo(items: list[Any]) -> list[Any]:
            return items

        yield echo


@pytest.fixture
def echo(redis_url: str) -> Iterator[Any]:
    with echo_task(redis_url) as task:
        yield task


@pytest.fixture
def by_kombu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The serializer of each message that kombu sent."""
    went: list[str] = []
    prepare = Producer._prepare

    def note(self: Producer, body: Any, serializer: str, *args: Any) -> Any:
        went.append(serializer)
        return prepare(self, body, serializer, *args)

    monkeypatch.setattr(Producer, "_prepare", note)
    return went


def call_as_celery(task: Any, args: tuple[Any, ...], **options: Any) -> None:
    """Call a task as Celery does without Batchery."""
    celery.Task.apply_async(task, args, **{**options, "headers": {ENQUEUED_AT: 1.5, **options.get("headers", {})}})


def published(client: redis.Redis) -> dict[str, Any]:
    """The oldest message of the only queue, without its ids and times."""
    (queue,) = [key for key in client.scan_iter() if not key.startswith(b"_kombu.")]
    raw: Any = client.rpop(queue)
    message: dict[str, Any] = kombu_json.loads(raw)
    headers, properties = message["headers"], message["properties"]
    assert headers.pop("id") == properties.pop("correlation_id")
    assert properties.pop("delivery_tag")
    for name in ("root_id", ENQUEUED_AT):
        assert headers.pop(name)
    for name in ("reply_to", "argsrepr"):
        properties.pop(name, None)
    if properties.get("expiration"):
        properties["expiration"] = round(float(properties["expiration"]), -4)
        headers["expires"] = headers["expires"][:10]
    message["queue"] = queue
    message["is_fast_call"] = decode(raw, ACCEPT) is not None
    # Arrays are not simply equal; their text shows three cells from either end.
    message["body"] = repr(loads(base64.b64decode(message["body"])))
    return message


# --- The fast path ----------------------------------------------------------------------------------------------------


FAST: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a priority": {"priority": 6},
    "an expiry": {"expires": NOW},
    "another queue": {"queue": "other"},
    "an ETA": {"eta": NOW},
    "a link": {"link": celery.signature("other")},
    "headers": {"headers": {"mine": "ü"}},
    "headers that only kombu can write": {"headers": {"moment": NOW, "huge": float("inf")}},
    "a text for logs": {"argsrepr": "hidden", "kwargsrepr": "hidden"},
    "a shadow": {"shadow": "somebody"},
    "no retries": {"retry": False},
    "a result": {"ignore_result": False},
}


@pytest.mark.parametrize("options", FAST.values(), ids=FAST)
def test_a_call_publishes_what_celery_would(
    echo: Any, redis_client: redis.Redis, by_kombu: list[str], options: dict[str, Any]
) -> None:
    call_as_celery(echo, ARGS, **options)
    theirs = published(redis_client)
    assert len(by_kombu) == 1
    echo.apply_async(ARGS, **options)
    assert published(redis_client) == theirs
    assert len(by_kombu) == 1


@pytest.mark.parametrize("options", FAST.values(), ids=FAST)
def test_many_calls_publish_what_single_calls_would(
    echo: Any, redis_client: redis.Redis, options: dict[str, Any]
) -> None:
    echo.apply_async(ARGS, **options)
    single = published(redis_client)
    echo.delay_many([*ARGS, *ARGS], **options)
    assert [published(redis_client) for _ in range(2)] == [single, single]
    assert not redis_client.dbsize()


@pytest.mark.parametrize("options", [{}, {"argsrepr": "hidden"}], ids=["shown", "hidden"])
@pytest.mark.parametrize("item", [VECTOR, {"ids": VECTOR, "raw": b"\0"}, [NOW, float("nan")]], ids=repr)
def test_calls_with_arrays_publish_what_celery_would(
    redis_url: str, redis_client: redis.Redis, by_kombu: list[str], item: Any, options: dict[str, Any]
) -> None:
    with echo_task(redis_url, serializer="batchery") as echo:
        call_as_celery(echo, (item,), **{"argsrepr": saferepr(summarise((item,))), **options})
        theirs = published(redis_client)
        echo.apply_async((item,), **options)
        echo.delay_many([item], **options)
        assert [published(redis_client) for _ in range(2)] == [theirs, theirs]
        assert len(by_kombu) == 1


def test_signals_of_publishing_are_sent_and_may_change_the_headers(echo: Any, redis_client: redis.Redis) -> None:
    marked: list[str] = []

    def mark(headers: dict[str, Any], **_: Any) -> None:
        headers["marked"] = headers["id"]
        marked.append(headers["id"])

    before_task_publish.connect(mark)
    try:
        ids = {echo.delay(1).id, *echo.delay_many([2, 3]).ids}
    finally:
        before_task_publish.disconnect(mark)
    sent = [kombu_json.loads(raw)["headers"]["marked"] for raw in redis_client.lrange("celery", 0, -1)]
    assert set(sent) == set(marked) == ids
    assert len(marked) == len(sent)


def test_the_prefix_of_keys_is_kept(redis_url: str, redis_client: redis.Redis, by_kombu: list[str]) -> None:
    with echo_task(redis_url) as echo:
        echo.app.conf.broker_transport_options = {"global_keyprefix": "mine:"}
        echo.delay(1)
        echo.delay_many([2, 3])
    assert redis_client.llen("mine:celery") == 3
    assert not by_kombu


def test_declared_queues_are_bound_once(redis_url: str, redis_client: redis.Redis) -> None:
    with echo_task(redis_url) as echo:
        echo.app.conf.task_queues = [Queue("bound", Exchange("topics", type="topic"), routing_key="a.*")]
        for _ in range(2):
            echo.apply_async((1,), exchange="", routing_key="bound", queue="bound")
    assert redis_client.llen("bound") == 2
    assert redis_client.scard("_kombu.binding.topics") == 1


# --- Through kombu ----------------------------------------------------------------------------------------------------

NOT_FAST: dict[str, dict[str, Any]] = {
    "compression": {"compression": "gzip"},
    "another serializer": {"serializer": "pickle"},
    "an odd priority": {"priority": 12},
    "a property of its own": {"message_id": "x"},
    "a queue that expires": {"queue": Queue("celery", Exchange("celery"), "celery", expires=60.0)},
    "an exchange": {"queue": Queue("celery-subjects", Exchange("subjects", type="topic"), "a.b")},
}


@pytest.mark.parametrize("options", NOT_FAST.values(), ids=NOT_FAST)
def test_calls_that_the_fast_path_does_not_take_go_through_kombu(
    echo: Any, redis_client: redis.Redis, by_kombu: list[str], options: dict[str, Any]
) -> None:
    echo.apply_async(ARGS, **options)
    echo.delay_many([*ARGS, *ARGS], **options)
    assert len(by_kombu) == 3
    assert sum(redis_client.llen(key) for key in redis_client.scan_iter("celery*")) == 3


def test_a_producer_of_the_callers_own_is_used(echo: Any, redis_client: redis.Redis, by_kombu: list[str]) -> None:
    with echo.app.producer_pool.acquire() as producer, producer.batch():
        echo.apply_async((1,), producer=producer)
        assert not redis_client.llen("celery")
    assert redis_client.llen("celery") == 1
    assert by_kombu == ["json"]


class Proxy:
    """Wraps a method as the library wrapt does: not a function, and everything else is read from what it wraps."""

    def __init__(self, wrapped: Any, call: Callable[..., Any]) -> None:
        self.__wrapped__, self.call = wrapped, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else functools.partial(self.call, instance)


def undisguised(_wrapped: Any, call: Callable[..., Any]) -> Any:
    return lambda *args, **options: call(*args, **options)


def with_names_of(wrapped: Any, call: Callable[..., Any]) -> Any:
    return functools.wraps(wrapped)(undisguised(wrapped, call))


def mocked(wrapped: Any, call: Callable[..., Any]) -> Any:
    mock = create_autospec(wrapped)
    mock.side_effect = call
    return mock


@pytest.mark.parametrize("wrapper", [undisguised, with_names_of, Proxy, mocked])
def test_a_wrapper_of_kombus_publish_sees_each_call(
    echo: Any, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, wrapper: Callable[..., Any]
) -> None:
    seen: list[Any] = []
    publish = Producer.publish

    def traced(self: Producer, body: Any, **options: Any) -> Any:
        seen.append(body[0])
        return publish(self, body, **options)

    monkeypatch.setattr(Producer, "publish", wrapper(publish, traced))
    echo.delay(1)
    assert seen == [(1,)]
    assert redis_client.llen("celery") == 1


def test_a_route_that_looks_at_the_arguments_is_called_for_each_call(redis_url: str, redis_client: redis.Redis) -> None:
    def route(_name: str, args: Sequence[Any], *_: Any, **__: Any) -> dict[str, str]:
        return {"queue": f"of-{args[0]}"}

    with echo_task(redis_url) as echo:
        echo.app.conf.task_routes = (route,)
        echo.delay_many([1, 2, 1])
    assert (redis_client.llen("of-1"), redis_client.llen("of-2")) == (2, 1)


def test_a_tasks_own_apply_async_is_called_for_each_call(redis_url: str, redis_client: redis.Redis) -> None:
    class Routed(BatchTask):
        name = "routed"
        ignore_result = True

        def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
            return super().apply_async(args, kwargs, *more, **{**options, "queue": f"of-{args[0]}"})

        def predict(self, batch: Any) -> Any:
            return batch

    with Celery(broker=redis_url, set_as_current=False) as app:
        routed: Any = app.register_task(Routed())
        routed.delay_many([1, 2, 1])
    assert (redis_client.llen("of-1"), redis_client.llen("of-2")) == (2, 1)


def test_messages_of_protocol_1_go_through_celery(redis_url: str, redis_client: redis.Redis) -> None:
    with echo_task(redis_url) as echo:
        echo.app.conf.task_protocol = 1
        ids = [echo.delay(1).id, *echo.delay_many([2, 3]).ids]
    bodies = [kombu_json.loads(raw)["body"] for raw in redis_client.lrange("celery", 0, -1)]
    assert [loads(base64.b64decode(body))["id"] for body in bodies] == ids[::-1]


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_arguments_that_cannot_be_encoded_are_refused_as_celery_refuses_them(
    echo: Any, redis_client: redis.Redis
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: call_as_celery(echo, (object(),)),
        lambda: echo.delay(object()),
        lambda: echo.delay_many([object(), 1]),
    ]
    for call in calls:
        with pytest.raises(EncodeError, match="not JSON serializable"):
            call()
    assert not redis_client.llen("celery")


def test_a_lost_connection_is_made_again(echo: Any, redis_client: redis.Redis) -> None:
    for kind in ("normal", "pubsub"):
        echo.delay(1)
        echo.delay_many([2, 3])
        redis_client.client_kill_filter(_type=kind, skipme=True)
    echo.delay_many([2, 3])
    echo.delay(1)
    assert redis_client.llen("celery") == 9


def test_an_unreachable_broker_is_tried_as_often_as_celery_tries_it() -> None:
    def tries(call: Callable[..., Any]) -> int:
        count = 0

        def note(*_: Any) -> None:
            nonlocal count
            count += 1

        with echo_task("redis://127.0.0.1:1") as echo, pytest.raises(OperationalError):
            call(echo, retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0, "errback": note})
        return count

    theirs = tries(lambda echo, **options: call_as_celery(echo, (1,), **options))
    assert theirs > 0
    assert tries(lambda echo, **options: echo.apply_async((1,), **options)) == theirs
    assert tries(lambda echo, **options: echo.delay_many([1, 2], **options)) == theirs


@pytest.mark.parametrize("way", ["fast", "kombu"])
def test_large_calls_are_sent_in_commands_of_bounded_bytes(
    redis_url: str, redis_client: redis.Redis, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send: Callable[..., Any] = Connection.send_packed_command

    def note(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(len(command) if isinstance(command, bytes | str) else sum(map(len, command)))
        return send(self, command, *args, **kwargs)

    monkeypatch.setattr(Connection, "send_packed_command", note)
    options = {"compression": "gzip"} if way == "kombu" else {}
    with echo_task(redis_url) as echo:
        items = [random.Random(number).randbytes(750_000).hex() for number in range(20)]
        ids = echo.delay_many([*items, "small"], **options).ids
    assert redis_client.llen("celery") == len(ids) == 21
    assert max(sent) < 16 * 2**20
    assert sum(sent) > 10 * 2**20
    assert (
        b"small" in base64.b64decode(kombu_json.loads(redis_client.lrange("celery", 0, 0)[0])["body"]) or way == "kombu"
    )
