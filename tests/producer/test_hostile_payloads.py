"""Payloads that are meant to harm give a clear error or a value, and take no more memory than their size allows."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from batchery.producer.codec.serializer import dumps, loads
from hypothesis import given
from hypothesis import strategies as st

#: Python's objects take more room than their JSON: an empty object is 64 bytes and a place in a list, of 3 bytes.
WORTH = 30
#: What loading takes whatever the payload, an error's traceback among it.
OVERHEAD = 64 * 1024


def load_within_bounds(payload: bytes) -> Any:
    """The value, or the error; fails if more memory was taken than the payload is worth."""
    tracemalloc.start()
    try:
        outcome: Any = loads(payload)
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as exc:
        outcome = exc
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= WORTH * len(payload) + OVERHEAD
    return outcome


def array(dtype: Any, shape: Any, kind: str = "array") -> bytes:
    return b'{"__type__": "batchery.%b", "__value__": [%b, %b]}' % (kind.encode(), dtype, shape)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "more cells than bytes": (
        array(b'"float32"', b"[1000000000]") + b"\0abcd",
        "4000000000 bytes are to follow, 4 are",
    ),
    "sizes whose product overflows": (array(b'"float64"', b"[4294967296, 4294967296]") + b"\0", "ends early"),
    "a size beyond 64 bits": (array(b'"int8"', b"[%d]" % 2**80) + b"\0", "ends early"),
    "sizes of thousands of digits": (array(b'"int8"', b"[%b, 1]" % (b"9" * 4000)) + b"\0", "ends early"),
    "a negative size": (array(b'"int8"', b"[-1, -4]") + b"\0abcd", "whole numbers from 0 up"),
    "a size that is no number": (array(b'"int8"', b'["4"]') + b"\0abcd", "whole numbers from 0 up"),
    "a bool for a size": (array(b'"int8"', b"[true]") + b"\0a", "whole numbers from 0 up"),
    "a fractional size": (array(b'"int8"', b"[1.0]") + b"\0a", "whole numbers from 0 up"),
    "no shape": (array(b'"int8"', b"4") + b"\0abcd", "a list of whole numbers"),
    "too many dimensions": (array(b'"int8"', b"[%b]" % b",".join([b"1"] * 33)) + b"\0a", "33 dimensions; at most 32"),
    "lists out of nothing": (array(b'"int8"', b"[1000000000, 0]"), "may make 1048576 at most"),
    "an object's dtype": (array(b'"object"', b"[1]") + b"\0abcdefgh", "dtype 'object' cannot be read"),
    "a dtype's code": (array(b'"O"', b"[1]") + b"\0abcdefgh", "dtype 'O' cannot be read"),
    "a record": (array(b'[["a", "O"]]', b"[1]") + b"\0abcdefgh", "cannot be read"),
    "torch's own dtype for numpy": (array(b'"bfloat16"', b"[1]") + b"\0ab", "dtype 'bfloat16' cannot be read"),
    "no dtype": (b'{"__type__": "batchery.array", "__value__": []}', "must be dtype and shape"),
    "no description": (b'{"__type__": "batchery.tensor", "__value__": null}', "must be dtype and shape"),
    "bytes of negative size": (b'{"__type__": "batchery.bytes", "__value__": -1}\0ab', "ends early"),
    "bytes of no size": (b'{"__type__": "batchery.bytes", "__value__": "1"}\0ab', "ends early"),
    "bytes that are not there": (
        b'{"__type__": "batchery.bytes", "__value__": 1}',
        "1 bytes are to follow, 0 are there",
    ),
    "bytes left over": (dumps(np.ones(1)) + b"x", "1 bytes that belong to none of its arrays"),
    "bytes behind plain JSON": (b"[1]\0x", "1 bytes that belong to none of its arrays"),
    "a type that nobody knows": (b'{"__type__": "pickle", "__value__": ""}', "Unsupported type"),
    "nothing": (b"", "Expecting value"),
    "half of the JSON": (dumps([np.ones(1)])[:20], "Unterminated string|Expecting"),
    "other bytes": (b"\xff\xfe", "invalid start byte"),
    "deep lists": (b"[" * 100_000, "recursion"),
    "deep arrays": (b"[" * 100_000 + array(b'"int8"', b"[1]"), "recursion"),
}


@pytest.mark.parametrize(("payload", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_payload_is_an_error_that_says_what_is_wrong(payload: bytes, message: str) -> None:
    error = load_within_bounds(payload)
    assert isinstance(error, Exception)
    assert re.search(message, str(error)), str(error)


def test_no_byte_is_used_twice() -> None:
    twice = array(b'"int8"', b"[4]")
    error = load_within_bounds(b"[%b, %b]\0abcd" % (twice, twice))
    assert "4 bytes are to follow, 0 are there" in str(error)


def test_a_bool_that_is_neither_true_nor_false_is_true() -> None:
    for kind in ("array", "tensor"):
        back = loads(array(b'"bool"', b"[3]", kind) + b"\0\x00\x01\xff")
        assert np.asarray(back).tobytes() == b"\0\1\1"


def test_a_large_array_takes_its_own_size_once() -> None:
    payload = dumps(np.ones(2**20))
    tracemalloc.start()
    try:
        loads(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * 2**23


SOUND = [
    dumps([[np.arange(6.0).reshape(2, 3), "text"], {"mask": torch.ones(3, dtype=torch.bool)}, {"chord": None}]),
    dumps([torch.ones(2, 2, dtype=torch.bfloat16), b"\0\1\2", {"a": [1, None, True, 0.5]}]),
    dumps([np.zeros((0, 3)), np.float16(1), {"deep": [[[[np.ones((), np.int8)]]]]}]),
]
#: Whole tokens make mutants that get further than single bytes.
TOKENS = [
    b"\0",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b"-1",
    b"0",
    b"99999999999",
    b'"float64"',
    b'"bool"',
    b'"__type__"',
    b"\xff",
]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A sound payload after some cuts, insertions and repetitions."""
    payload = draw(st.sampled_from(SOUND))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(payload)))
        end = draw(st.integers(start, min(len(payload), start + 12)))
        middle = draw(st.sampled_from(TOKENS) | st.binary(max_size=4) | st.just(payload[start:end] * 3))
        payload = payload[:start] + middle + payload[end:]
    return payload


@given(payload=mutants() | st.binary())
def test_a_mutated_payload_is_a_value_or_an_error_and_takes_no_more_memory_than_its_size_allows(payload: bytes) -> None:
    load_within_bounds(payload)
