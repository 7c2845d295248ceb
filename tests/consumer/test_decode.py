"""The fast decode and Celery's own request say the same of a message, or the fast one says nothing."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from batchery.worker.consumer.wire.decode import FastCall, decode, lost_of
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from tests.support.envelopes import message
from tests.support.messages import ACCEPT, assert_same, decode_quickly, memory_app, raw_message, stock

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    with memory_app() as app:
        yield app


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
def test_both_decoders_read_the_same_call(
    app: Celery, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]
) -> None:
    raw = raw_message(app, args, kwargs, **options)
    if decode(raw, ACCEPT) is None:
        # Where JSON readers differ, Celery's own reads it: numbers and letters that only Python's JSON knows.
        assert stock(app, raw).args == json.loads(json.dumps(args))
    else:
        assert_same(app, raw)


@given(
    args=st.lists(array_values, max_size=4),
    kwargs=st.dictionaries(st.text(), array_values, max_size=3),
    options=options,
)
def test_both_decoders_read_the_same_arrays(
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


@pytest.mark.parametrize("expires", [60, NOW + dt.timedelta(days=36_500)], ids=str)
def test_a_call_that_expires_takes_the_fast_decode(app: Celery, expires: Any) -> None:
    assert_same(app, raw_message(app, [1], {}, expires=expires))


@pytest.mark.parametrize("serializer", ["json", "batchery"])
@pytest.mark.parametrize(("chord", "in_chord"), [(None, False), ({"task": "x", "args": [1]}, True)])
def test_a_part_of_a_chord_takes_the_fast_decode(app: Celery, serializer: str, chord: Any, in_chord: bool) -> None:
    raw = raw_message(app, [1, np.ones(2).tolist()], {}, chord=chord, serializer=serializer)
    assert_same(app, raw)
    call = decode(raw, ACCEPT)
    assert call is not None
    assert call.in_chord == in_chord


def test_a_call_with_its_time_of_enqueueing_takes_the_fast_decode(app: Celery) -> None:
    call = decode(raw_message(app, [1], {}, headers={"batchery_enqueued_at": 12.5}), ACCEPT)
    assert call is not None
    assert call.headers.batchery_enqueued_at == 12.5


UNUSUAL: dict[str, dict[str, Any]] = {
    "eta": {"eta": NOW},
    "countdown": {"countdown": 5},
    "link": {"link": {"task": "x"}},
    "link_error": {"link_error": {"task": "x"}},
    "chain": {"chain": [{"task": "x"}]},
    "a chord that is none": {"chord": ["x"]},
    "time limit": {"time_limit": 5},
    "soft time limit": {"soft_time_limit": 5},
    "stamps": {"stamped_headers": ["x"], "x": "y"},
    "a naive expiry": {"expires": dt.datetime(2026, 1, 2)},
    "a header of its own": {"headers": {"custom": 1}},
    "redelivered by kombu": {"headers": {"redelivered": True}},
    "yaml-like text": {"serializer": "pickle"},
}


@pytest.mark.parametrize("options", UNUSUAL.values(), ids=UNUSUAL)
def test_a_message_that_is_no_fast_call_is_left_to_celery(app: Celery, options: dict[str, Any]) -> None:
    assert decode(raw_message(app, [1], {}, **options), ACCEPT) is None
    if "serializer" not in options:
        assert decode(raw_message(app, [np.ones(2)], {}, serializer="batchery", **options), ACCEPT) is None


@pytest.mark.parametrize(
    "args", [[NOW], [b"bytes"], [float("nan")], [float("inf")], [{"__type__": "x", "__value__": 1}]], ids=repr
)
def test_arguments_that_only_kombu_reads_are_left_to_celery(app: Celery, args: list[Any]) -> None:
    assert decode(raw_message(app, args, {}), ACCEPT) is None


@given(st.binary())
def test_bytes_that_are_no_message_are_left_to_celery(raw: bytes) -> None:
    assert decode(raw, ACCEPT) is None


def test_protocol_1_is_left_to_celery() -> None:
    assert decode(b'{"id": "x", "task": "t", "args": [], "kwargs": {}}', ACCEPT) is None


def decode_delivered(**info: Any) -> FastCall | None:
    return decode(message(delivery_info={"exchange": "", "routing_key": "celery", **info}), ACCEPT)


@pytest.mark.parametrize(
    ("counts", "lost"),
    [([3, 2, 1], (3, 2, 1)), ([10**12, 0, 0], (10**6, 0, 0)), ([-1, 0, 0], (0, 0, 0))],
    ids=repr,
)
def test_a_redelivered_message_says_how_often_it_was_lost(counts: Any, lost: Any) -> None:
    call = decode_delivered(redelivered=True, batchery_lost=counts)
    assert call is not None
    assert (call.redelivered, call.lost) == (True, lost)
    assert lost_of(counts) == lost


@pytest.mark.parametrize("counts", [None, "x", 7, [1, 2], [1, 2, 3, 4], [1.5, 0, 0], {}], ids=repr)
def test_counts_that_nobody_wrote_are_left_to_celery_and_are_none(counts: Any) -> None:
    assert decode_delivered(batchery_lost=counts) is None
    assert lost_of(counts) == (0, 0, 0)


@pytest.mark.parametrize(("flag", "redelivered"), [(True, True), (False, False), (2, True), (0, False)])
def test_a_message_that_others_delivered_before_was_not_lost_by_us(flag: Any, redelivered: bool) -> None:
    call = decode_delivered(redelivered=flag)
    assert call is not None
    assert (call.redelivered, call.lost) == (redelivered, (0, 0, 0))
