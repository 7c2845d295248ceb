"""Messages as a caller's Celery writes them, decoded by Celery and by us."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from batchery.producer.codec.serializer import CONTENT_TYPE
from batchery.worker.broker import Claim, Queue
from batchery.worker.consumer.wire.decode import FastCall, decode
from batchery.worker.consumer.wire.kombu_message import LeaseChannel, to_kombu
from celery import Celery
from celery.worker.request import Request
from kombu.utils import json as kombu_json

ACCEPT = {"application/json", CONTENT_TYPE}
#: Far below the real bound, so that what exceeds it is quick.
MAX_BODY = 2**20


@contextmanager
def memory_app() -> Iterator[Celery]:
    """An app that publishes into memory, and has one task, `t`."""
    app = Celery(broker="memory://", set_as_current=False)

    @app.task(name="t", shared=False)
    def task(*args: Any, **kwargs: Any) -> None: ...

    app.finalize()
    with app.producer_pool.acquire() as producer:
        producer.channel._purge("celery")  # the memory is the process's: other tests have published, too
    yield app
    app.close()


def raw_message(app: Celery, args: Any, kwargs: Any, **options: Any) -> bytes:
    """The bytes that kombu's Redis transport pushes for such a call; here kombu's transport in memory takes them."""
    with app.producer_pool.acquire() as producer:
        app.send_task("t", args, kwargs, task_id="an-id", producer=producer, queue="celery", **options)
        return bytes(kombu_json.dumps(producer.channel._get("celery")), "utf-8")


def stock(app: Celery, raw: bytes) -> Request:
    """Celery's own request for a message."""
    channel = LeaseChannel(lambda tag: None, lambda tag: None)
    message = to_kombu(Claim("tag", Queue("celery"), raw, 1), channel, ACCEPT, MAX_BODY)
    return Request(
        message, app=app, body=message.body, headers=message.headers, decoded=False, utc=True, task=app.tasks["t"]
    )


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


def decode_quickly(raw: bytes) -> FastCall | None:
    return decode(raw, ACCEPT, MAX_BODY)


def assert_same(app: Celery, raw: bytes) -> None:
    call, request = decode_quickly(raw), stock(app, raw)
    assert call is not None
    headers = call.headers
    assert same(call.args, request.args)
    assert same(call.kwargs, request.kwargs)
    assert (headers.id, headers.task, headers.shadow or headers.task) == (request.id, request.type, request.name)
    assert (headers.root_id, headers.parent_id) == (request.root_id, request.parent_id)
    assert (headers.argsrepr, headers.kwargsrepr) == (request.argsrepr, request.kwargsrepr)
    ignored = app.tasks["t"].ignore_result if headers.ignore_result is None else headers.ignore_result
    assert ignored == request.ignore_result
    assert headers.retries == request.request_dict["retries"]
    assert headers.group == request.request_dict["group"]
    assert call.priority == (request.delivery_info["priority"] or 0)
    expires = None if request.expires is None else request.expires.timestamp()
    assert call.expires_at == expires
