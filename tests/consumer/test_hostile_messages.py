"""Messages that nobody honest wrote: closed, bounded, and never an exception in the thread that claims."""

from __future__ import annotations

import base64
import gzip
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from batchery.producer.codec.serializer import CONTENT_TYPE
from batchery.worker import tuning
from batchery.worker.consumer.wire.decode import decode
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from tests.support.messages import ACCEPT, MAX_BODY, assert_same, decode_quickly, memory_app, raw_message, same, stock


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    with memory_app() as app:
        yield app


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
        assert decode(raw, ACCEPT) is not None
    assert tuning.MAX_BODY_BYTES >= 16 * 2**20


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
        assert decode(kombu_json.dumps(envelope).encode(), ACCEPT) is None
    assert decode(b"[" * 100_000, ACCEPT) is None


@given(data=st.data())
def test_a_mutated_message_is_left_to_celery_or_read_as_celery_reads_it(app: Celery, data: st.DataObject) -> None:
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
