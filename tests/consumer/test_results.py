"""Results are stored in Celery's own format: once decoded, what Celery's encoder would have stored."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from batchery.batchers import Job, Outcome
from batchery.producer.codec.serializer import encode_by
from batchery.worker.consumer.fast.encode_result import SERIALIZERS, encode_success
from batchery.worker.consumer.fast.one_step import OneStep
from batchery.worker.consumer.wire.decode import Headers
from batchery.worker.consumer.wire.request import FastRequest
from celery import Celery
from celery.app.task import Context
from hypothesis import given
from hypothesis import strategies as st

DONE_AT = "2026-01-02T03:04:05.678901+00:00"


@pytest.fixture(scope="module", params=SERIALIZERS)
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    # The backend is never connected to: only its encoder is asked.
    app = Celery(broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(result_serializer=request.param, accept_content=SERIALIZERS)
    yield app
    app.close()


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    pass


@dataclasses.dataclass
class Point:
    x: int
    y: Any


VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "text": 'naïve ünïcöde 队列 \u2028 😀 \x00 " \\ </script>',
    "a lone surrogate": "\ud800",
    "empty": "",
    "an int beyond 64 bits": [2**63, 2**64, -(2**64), 10**40],
    "floats": [0.1, -0.0, 1e16, 1e-7, 1.7976931348623157e308, 5e-324, 123456789.0],
    "NaN": math.nan,
    "infinities": [math.inf, {"x": -math.inf, "y": None}],
    "nested": {"a": [1, [2, [3, {"b": None}]]], "c": {}, "d": []},
    "a tuple": (1, (2, 3)),
    "a tuple with odd floats": (1.0, (math.nan,)),
    "a dict of ints": {1: "one", 2: "two"},
    "a dict of odd keys": {None: 1, True: 2, 1.5: 3},
    "datetime": dt.datetime(2026, 1, 2, 3, 4, 5, 678),
    "aware datetime": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    "date and time": [dt.date(2026, 1, 2), dt.time(3, 4, 5)],
    "Decimal": decimal.Decimal("1.10"),
    "Decimal NaN": decimal.Decimal("NaN"),
    "UUID": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "bytes": b"bytes",
    "odd bytes": b"\xff\x00",
    "an enum": Colour.RED,
    "an int enum": Number.ONE,
    "a str's own kind": Text("x"),
    "a set": {1},
    "a dataclass": Point(1, "y"),
    "an object": object(),
    "an array": np.arange(6, dtype=np.float16).reshape(2, 3),
    "a tensor": torch.ones(2, dtype=torch.bfloat16),
    "arrays within": {"ids": [np.zeros((0, 2)), 1.5, None], "raw": b"\0", "mask": torch.tensor(True)},
    "a numpy scalar": np.float32(1.5),
    "the words of a null": ["null", None, 0.5],
    "deep": None,
}
deep: Any = []
for _ in range(200):
    deep = [deep]
VALUES["deep"] = deep


def stock(app: Celery, value: Any, request: Context) -> Any:
    """What Celery stores, once decoded; the exception class if it cannot."""
    backend = app.backend
    result = backend.encode_result(value, "SUCCESS")
    meta = backend._get_result_meta(result=result, state="SUCCESS", traceback=None, request=request)
    meta["task_id"] = request.id
    meta["date_done"] = DONE_AT
    return backend.decode(backend.encode(meta))


def ours(app: Celery, value: Any, request: Context) -> Any:
    encoded = encode_success(
        request.id, encode_by(app.backend.serializer, value), DONE_AT, request.group, request.parent_id
    )
    return app.backend.decode(encoded)


def context(**values: Any) -> Context:
    return Context({"id": "an-id", "children": [], "group": None, "parent_id": None, **values})


def same(one: Any, other: Any) -> bool:
    """Equal, of equal types, with NaN equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | torch.Tensor):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist())
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    return bool(one == other) or (one != one and other != other)  # a Decimal can be NaN too


def check(app: Celery, value: Any, request: Context) -> None:
    try:
        expected = stock(app, value, request)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the encoder's own matter
            ours(app, value, request)
        return
    actual = ours(app, value, request)
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert same(actual[name], wanted), name


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_result_is_what_celery_would_store(app: Celery, value: Any) -> None:
    check(app, value, context())


@pytest.mark.parametrize(
    "request_values",
    [
        {"group": "a-group"},
        {"parent_id": "a-parent"},
        {"group": 'g"ö', "parent_id": "p\\"},
        {"id": 'odd "id" ü', "group": "", "parent_id": ""},
    ],
)
def test_group_and_parent_are_where_celery_has_them(app: Celery, request_values: dict[str, Any]) -> None:
    check(app, [1], context(**request_values))


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
rich = (
    plain
    | st.binary(max_size=8)
    | st.datetimes(timezones=st.none() | st.just(dt.UTC))
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)  # a signalling one cannot be compared
    | st.uuids()
    | st.builds(Point, st.integers(), st.text())
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda values: (
            st.lists(values) | st.dictionaries(st.text() | st.integers(), values) | st.tuples(values, values)
        ),
        max_leaves=12,
    )


@given(value=nested(plain) | nested(rich))
def test_any_value_is_stored_as_celery_would(app: Celery, value: Any) -> None:
    check(app, value, context())


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_results_are_compressed_where_the_app_says_so(app: Celery, compression: str | None) -> None:
    with Celery(broker=app.conf.broker_url, backend=app.conf.result_backend, set_as_current=False) as compressing:
        compressing.conf.update(
            result_serializer=app.conf.result_serializer, accept_content=SERIALIZERS, result_compression=compression
        )
        headers = Headers("t", "an-id", ignore_result=False)
        request = FastRequest(None, headers, None, None, "an-id", "t")  # type: ignore[arg-type]
        outcome = Outcome(Job("an-id", "t", [], {}, request, 0.0, 1), value=["x" * 10_000])
        (settlement,) = OneStep(compressing, compressing.backend).encode([outcome])
    assert outcome.error is None
    assert (len(settlement.result) < 1000) == (compression is not None)
    assert app.backend.decode(settlement.result)["result"] == outcome.value
