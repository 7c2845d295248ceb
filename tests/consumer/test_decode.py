"""The fast decode and Celery's own request say the same of a message, or the fast one says nothing."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from batchery.worker.broker import Claim, Queue
from batchery.worker.consumer.message import decode
from batchery.worker.consumer.messages import LeaseChannel, to_kombu
from celery import Celery
from celery.worker.request import Request
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    app = Celery(broker="memory://", set_as_current=False)

    @app.task(name="t", shared=False)
    def task(*args: Any, **kwargs: Any) -> None: ...

    app.finalize()
    yield app
    app.close()


def raw_message(
    app: Celery, args: Any, kwargs: Any, *, priority: Any = None, serializer: str = "json", **options: Any
) -> bytes:
    """The bytes that kombu's Redis transport pushes for such a call; here kombu's transport in memory takes them."""
    headers = options.pop("headers", {})
    message = app.amqp.as_task_v2("an-id", "t", args, kwargs, **options)
    with app.producer_pool.acquire() as producer:
        app.amqp.send_task_message(
            producer, "t", message, queue="celery", priority=priority, serializer=serializer, headers=headers
        )
        return bytes(kombu_json.dumps(producer.channel._get("celery")), "utf-8")


def stock(app: Celery, raw: bytes) -> Request:
    channel = LeaseChannel(lambda tag: None, lambda tag: None)
    message = to_kombu(Claim("tag", Queue("celery"), raw, 1), channel, {"application/json"})
    return Request(
        message, app=app, body=message.body, headers=message.headers, decoded=False, utc=True, task=app.tasks["t"]
    )


def assert_same(app: Celery, raw: bytes) -> None:
    call, request = decode(raw), stock(app, raw)
    assert call is not None
    headers = call.headers
    assert same(call.args, request.args)
    assert same(call.kwargs, request.kwargs)
    assert (headers.id, headers.task, headers.shadow or headers.task) == (request.id, request.type, request.name)
    assert (headers.root_id, headers.parent_id) == (request.root_id, request.parent_id)
    assert (headers.argsrepr, headers.kwargsrepr) == (request.argsrepr, request.kwargsrepr)
    assert headers.ignore_result == request.ignore_result
    assert headers.retries == request.request_dict["retries"]
    assert headers.group == request.request_dict["group"]
    assert call.priority == (request.delivery_info["priority"] or 0)
    expires = None if request.expires is None else request.expires.timestamp()
    assert call.expires_at == expires


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
options = st.fixed_dictionaries(
    {},
    optional={
        "expires": st.sampled_from([60, 0.5, NOW, NOW.astimezone(dt.timezone(dt.timedelta(hours=5)))]),
        "priority": st.integers(0, 9),
        "retries": st.integers(0, 100),
        "group_id": st.text(min_size=1),
        "group_index": st.integers(0, 1000),
        "root_id": st.uuids().map(str),
        "parent_id": st.uuids().map(str),
        "shadow": st.text(min_size=1),
        "ignore_result": st.booleans(),
        "reply_to": st.uuids().map(str),
        "origin": st.text(),
        "argsrepr": st.text(),
        "kwargsrepr": st.text(),
    },
)


@given(args=st.lists(values, max_size=4), kwargs=st.dictionaries(st.text(), values, max_size=3), options=options)
def test_an_ordinary_message_says_the_same_either_way(
    app: Celery, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]
) -> None:
    raw = raw_message(app, args, kwargs, **options)
    if decode(raw) is None:
        # Where JSON readers differ, Celery's own reads it: numbers and letters that only Python's JSON knows.
        assert stock(app, raw).args == json.loads(json.dumps(args))
    else:
        assert_same(app, raw)


@pytest.mark.parametrize("args", [[], ["text"], [1.5, None, True], [[1, [2]], {"k": "v"}], [{"deep": [{"x": None}]}]])
def test_plain_arguments_take_the_fast_decode(app: Celery, args: list[Any]) -> None:
    assert_same(app, raw_message(app, args, {}))


def test_the_time_of_enqueueing_is_an_ordinary_header(app: Celery) -> None:
    call = decode(raw_message(app, [1], {}, headers={"batchery_enqueued_at": 12.5}))
    assert call is not None
    assert call.headers.batchery_enqueued_at == 12.5


UNUSUAL: dict[str, dict[str, Any]] = {
    "eta": {"eta": NOW},
    "countdown": {"countdown": 5},
    "link": {"callbacks": [{"task": "x"}]},
    "link_error": {"errbacks": [{"task": "x"}]},
    "chain": {"chain": [{"task": "x"}]},
    "chord": {"chord": {"task": "x"}},
    "time limit": {"time_limit": 5},
    "soft time limit": {"soft_time_limit": 5},
    "stamps": {"stamped_headers": ["x"], "x": "y"},
    "a naive expiry": {"expires": dt.datetime(2026, 1, 2)},
    "a header of its own": {"headers": {"custom": 1}},
    "redelivered by kombu": {"headers": {"redelivered": True}},
    "yaml-like text": {"serializer": "pickle"},
}


@pytest.mark.parametrize("options", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_message_is_left_to_celery(app: Celery, options: dict[str, Any]) -> None:
    assert decode(raw_message(app, [1], {}, **options)) is None


@pytest.mark.parametrize(
    "args", [[NOW], [b"bytes"], [float("nan")], [float("inf")], [{"__type__": "x", "__value__": 1}]], ids=repr
)
def test_arguments_that_only_kombu_reads_are_left_to_celery(app: Celery, args: list[Any]) -> None:
    assert decode(raw_message(app, args, {})) is None


@given(st.binary())
def test_bytes_that_are_no_message_are_left_to_celery(raw: bytes) -> None:
    assert decode(raw) is None


def test_protocol_1_is_left_to_celery() -> None:
    assert decode(b'{"id": "x", "task": "t", "args": [], "kwargs": {}}') is None
