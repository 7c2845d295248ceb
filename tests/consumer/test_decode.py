"""The fast decode and Celery's own request say the same of a message, or the fast one says nothing."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import json
import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from batchery.producer.serializer import CONTENT_TYPE
from batchery.worker.broker import Claim, Queue
from batchery.worker.consumer.message import MAX_BODY_BYTES, Ordinary, decode
from batchery.worker.consumer.messages import LeaseChannel, to_kombu
from celery import Celery
from celery.worker.request import Request
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
ACCEPT = {"application/json", CONTENT_TYPE}
#: Far below the real bound, so that what exceeds it is quick.
MAX_BODY = 2**20


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    app = Celery(broker="memory://", set_as_current=False)

    @app.task(name="t", shared=False)
    def task(*args: Any, **kwargs: Any) -> None: ...

    app.finalize()
    yield app
    app.close()


def raw_message(
    app: Celery,
    args: Any,
    kwargs: Any,
    *,
    priority: Any = None,
    serializer: str = "json",
    compression: str | None = None,
    **options: Any,
) -> bytes:
    """The bytes that kombu's Redis transport pushes for such a call; here kombu's transport in memory takes them."""
    headers = options.pop("headers", {})
    message = app.amqp.as_task_v2("an-id", "t", args, kwargs, **options)
    with app.producer_pool.acquire() as producer:
        app.amqp.send_task_message(
            producer,
            "t",
            message,
            queue="celery",
            priority=priority,
            serializer=serializer,
            compression=compression,
            headers=headers,
        )
        return bytes(kombu_json.dumps(producer.channel._get("celery")), "utf-8")


def stock(app: Celery, raw: bytes) -> Request:
    channel = LeaseChannel(lambda tag: None, lambda tag: None)
    message = to_kombu(Claim("tag", Queue("celery"), raw, 1), channel, ACCEPT, MAX_BODY)
    return Request(
        message, app=app, body=message.body, headers=message.headers, decoded=False, utc=True, task=app.tasks["t"]
    )


def assert_same(app: Celery, raw: bytes) -> None:
    call, request = decode_quickly(raw), stock(app, raw)
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
    if isinstance(one, np.ndarray | torch.Tensor):
        return bool(
            one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one.tolist(), other.tolist())
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def decode_quickly(raw: bytes) -> Ordinary | None:
    return decode(raw, ACCEPT, MAX_BODY)


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
        "compression": st.sampled_from(["gzip", "bzip2", "lzma"]),
    },
)
arrays = st.sampled_from(
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.zeros((0, 2)),
        np.array(True),
        np.arange(3, dtype=">i2"),
        torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        torch.tensor(3),
    ]
)
array_values = st.recursive(
    plain | arrays | st.binary() | st.datetimes() | st.uuids(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
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


@given(
    args=st.lists(array_values, max_size=4),
    kwargs=st.dictionaries(st.text(), array_values, max_size=3),
    options=options,
)
def test_a_message_with_arrays_says_the_same_either_way(
    app: Celery, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]
) -> None:
    raw = raw_message(app, args, kwargs, serializer="batchery", **options)
    if decode_quickly(raw) is not None:
        assert_same(app, raw)
    else:  # as with JSON: only headers, and numbers without any array beside them, can be too odd
        assert stock(app, raw).args is not None


@pytest.mark.parametrize("args", [[], ["text"], [1.5, None, True], [[1, [2]], {"k": "v"}], [{"deep": [{"x": None}]}]])
def test_plain_arguments_take_the_fast_decode(app: Celery, args: list[Any]) -> None:
    assert_same(app, raw_message(app, args, {}))
    assert_same(app, raw_message(app, args, {}, serializer="batchery"))


@pytest.mark.parametrize("compression", [None, "gzip", "bzip2", "lzma"])
@pytest.mark.parametrize(
    "args", [[np.ones((2, 3))], [b"\0"], [NOW], [torch.ones(2, dtype=torch.bfloat16), float("nan")]], ids=repr
)
def test_arrays_take_the_fast_decode(app: Celery, args: list[Any], compression: str | None) -> None:
    raw = raw_message(app, args, {"more": args}, serializer="batchery", compression=compression)
    assert_same(app, raw)


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
    if "serializer" not in options:
        assert decode(raw_message(app, [np.ones(2)], {}, serializer="batchery", **options)) is None


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


# -- Closed and bounded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["application/json", CONTENT_TYPE])
def test_content_that_the_app_does_not_accept_is_left_to_celery_which_refuses_it(app: Celery, accept: str) -> None:
    for serializer, content_type in (("json", "application/json"), ("batchery", CONTENT_TYPE)):
        raw = raw_message(app, [1], {}, serializer=serializer)
        assert (decode(raw, {accept}) is not None) == (content_type == accept)


def bomb(app: Celery, compression: str, size: int) -> bytes:
    return raw_message(app, [np.zeros(size, np.uint8)], {}, serializer="batchery", compression=compression)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_a_message_that_decompresses_to_more_than_the_bound_is_refused_before_memory_is_taken(
    app: Celery, compression: str
) -> None:
    assert_same(app, bomb(app, compression, MAX_BODY - 1000))
    raw = bomb(app, compression, 64 * MAX_BODY)
    assert len(raw) < MAX_BODY
    tracemalloc.start()
    try:
        assert decode_quickly(raw) is None
        with pytest.raises(ValueError, match=f"larger than {MAX_BODY} bytes: send a reference"):
            stock(app, raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The output is joined from blocks, and LZMA has a dictionary of 8 MiB.
    assert peak < 4 * MAX_BODY + 8 * 2**20


def test_a_message_whose_body_is_larger_than_the_bound_is_refused(app: Celery) -> None:
    for size in (MAX_BODY, 4 * MAX_BODY):
        raw = raw_message(app, ["x" * size], {})
        assert decode_quickly(raw) is None
        with pytest.raises(ValueError, match="larger than"):
            stock(app, raw)
        assert decode(raw) is not None
    assert MAX_BODY_BYTES >= 16 * 2**20


DAMAGED = {
    "unknown": ("x-rot13", b"abc", r"compressed as 'x-rot13'; this worker decompresses application/x-bz2, application"),
    "cut short": ("application/x-gzip", None, "ends early"),
    "something else": ("application/x-lzma", gzip.compress(b"abc"), "cannot be decompressed"),
}


@pytest.mark.parametrize(("method", "body", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_message_that_cannot_be_decompressed_is_refused(
    app: Celery, method: str, body: bytes | None, message: str
) -> None:
    envelope = kombu_json.loads(raw_message(app, ["text"], {}, compression="gzip"))
    damaged = body or base64.b64decode(envelope["body"])[:-5]
    envelope["body"] = base64.b64encode(damaged).decode()
    envelope["headers"]["compression"] = method
    raw = kombu_json.dumps(envelope).encode()
    assert decode_quickly(raw) is None
    with pytest.raises(ValueError, match=message):
        stock(app, raw)


def test_deep_nesting_is_left_to_celery(app: Celery) -> None:
    for content_type in ACCEPT:
        envelope = kombu_json.loads(raw_message(app, [], {}))
        envelope["content-type"] = content_type
        envelope["body"] = base64.b64encode(b"[" * 100_000).decode()
        assert decode(kombu_json.dumps(envelope).encode()) is None
    assert decode(b"[" * 100_000) is None


@given(data=st.data())
def test_a_mutated_message_is_left_to_celery_or_says_the_same_either_way(app: Celery, data: st.DataObject) -> None:
    raw = raw_message(app, [np.arange(3.0), "text", b"raw"], {"mask": torch.ones(2)}, serializer="batchery")
    if data.draw(st.booleans()):  # within the body, which base64 would hide from most mutations
        envelope = kombu_json.loads(raw)
        body = mutate(base64.b64decode(envelope["body"]), data)
        raw = kombu_json.dumps({**envelope, "body": base64.b64encode(body).decode()}).encode()
    else:
        raw = mutate(raw, data)
    call = decode_quickly(raw)
    if call is not None:
        request = stock(app, raw)
        assert same(call.args, request.args)
        assert same(call.kwargs, request.kwargs)


def mutate(raw: bytes, data: st.DataObject) -> bytes:
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 8)))
    tokens = [b"\0", b"[", b"}", b",", b"-1", b"9" * 12, b'"bool"', b'"__type__"', b"\xff", b"null"]
    return raw[:start] + data.draw(st.sampled_from(tokens) | st.binary(max_size=4)) + raw[end:]
