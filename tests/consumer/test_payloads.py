"""Arrays travel both ways, between whoever has the serializer."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import redis
import torch
from batchery.worker import tuning
from celery import Celery, chord
from kombu.utils import json as kombu_json

from tests.support.callers import calling, held_back, unsettled
from tests.support.waiting import wait_until

WAIT = 15.0

#: What a calling service sets that does not call `setup`; a worker needs no more than the first.
ARRAYS: dict[str, Any] = {"result_serializer": "batchery", "accept_content": ["json", "batchery"]}

VECTOR = np.arange(384, dtype=np.float32)


@pytest.fixture(scope="module")
def worker_env() -> Mapping[str, str]:
    # Tensors stay tensors where torch is loaded; most models load it.
    return {"CONF": json.dumps({"result_serializer": "batchery", "imports": ["torch"]})}


@pytest.fixture(scope="module")
def module_app(server: str) -> Iterator[Celery]:
    with calling(server, **ARRAYS) as app:
        yield app


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return isinstance(other, np.ndarray) and one.dtype == other.dtype and bool(np.array_equal(one, other))


@pytest.mark.parametrize(
    "array",
    [
        VECTOR,
        np.ones(2, np.float16),
        np.zeros((0, 3)),
        np.arange(6, dtype=np.int32).reshape(2, 3).T,
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.tensor(3),
    ],
    ids=lambda array: f"{type(array).__name__} {array.dtype} {tuple(array.shape)}",
)
def test_an_array_goes_to_the_model_and_an_array_comes_back(app: Celery, array: Any) -> None:
    assert same(array * 2, app.tasks["double"].delay(array).get(timeout=WAIT))


def test_bytes_and_kombus_own_types_come_back_beside_arrays(app: Celery) -> None:
    text, raw = app.tasks["carry"].delay(["text", b"\0\xff", VECTOR]).get(timeout=WAIT)[:2]
    assert (text, raw) == ("text", b"\0\xff")


def test_a_service_with_nothing_but_our_serializer_calls_by_name(app: Celery, server: str) -> None:
    with Celery(broker=server, backend=server, set_as_current=False) as service:
        service.conf.update(ARRAYS, task_serializer="batchery")
        result = service.send_task("double", kwargs={"arrays": VECTOR})
        assert same(VECTOR * 2, result.get(timeout=WAIT))
        service.backend.result_consumer.stop()
        service.backend.client.close()


def test_plain_tasks_carry_arrays_too(app: Celery) -> None:
    assert same(VECTOR, app.tasks["carry"].delay(VECTOR).get(timeout=WAIT))


def test_arrays_go_through_chords_and_chains(app: Celery) -> None:
    double, carry = app.tasks["double"], app.tasks["carry"]
    both = chord([double.s(VECTOR), double.s(torch.ones(2))], carry.s()).apply_async().get(timeout=WAIT)
    assert same(VECTOR * 2, both[0])
    assert same(torch.full((2,), 2.0), both[1])
    assert same(VECTOR * 4, (double.s(VECTOR) | double.s()).apply_async().get(timeout=WAIT))


def test_callers_that_send_json_are_served_by_the_same_worker(app: Celery) -> None:
    result = app.tasks["double"].apply_async((21,), serializer="json")
    assert result.get(timeout=WAIT) == 42


def test_a_failed_call_raises_its_error_with_this_serializer_too(app: Celery) -> None:
    with pytest.raises(Exception, match="bad"):
        app.tasks["add"].apply_async(("bad", VECTOR), serializer="batchery").get(timeout=WAIT)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_compressed_messages_are_decompressed(app: Celery, compression: str) -> None:
    result = app.tasks["double"].apply_async((np.zeros(50_000),), compression=compression)
    assert same(np.zeros(50_000), result.get(timeout=WAIT))


def test_a_message_that_grows_beyond_the_bound_fails_alone_and_says_why(app: Celery) -> None:
    double = app.tasks["double"]
    bomb = double.apply_async((np.zeros(tuning.MAX_BODY_BYTES, np.uint8),), compression="gzip")
    sound = double.delay(VECTOR)
    assert same(VECTOR * 2, sound.get(timeout=WAIT))
    with pytest.raises(Exception, match=f"larger than {tuning.MAX_BODY_BYTES} bytes: send a reference"):
        bomb.get(timeout=WAIT)


def test_a_payload_with_missing_bytes_fails_alone_and_says_why(app: Celery, client: redis.Redis) -> None:
    with held_back(app, client):
        broken, sound = (app.tasks["double"].delay(VECTOR) for _ in range(2))
        message: dict[str, Any] = kombu_json.loads(client.rpop("celery"))
        message["body"] = base64.b64encode(base64.b64decode(message["body"])[:-4]).decode()
        client.rpush("celery", kombu_json.dumps(message))
    assert same(VECTOR * 2, sound.get(timeout=WAIT))
    with pytest.raises(Exception, match="1536 bytes are to follow, 1532 are there"):
        broken.get(timeout=WAIT)


def test_the_array_results_of_a_batch_are_stored_without_asking_for_each_key(app: Celery, client: redis.Redis) -> None:
    def gets() -> int:
        return int(client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"])

    with held_back(app, client):
        many = app.tasks["double"].delay_many([VECTOR] * 64)
    before = gets()
    # The worker has stored and acknowledged them; nobody has asked for them yet.
    wait_until(lambda: client.exists(*map(app.backend.get_key_for_task, many.ids)) == 64, "all are stored", WAIT)
    wait_until(lambda: not unsettled(client), "all are settled", WAIT)
    assert gets() - before < 32
    assert all(same(VECTOR * 2, result) for result in many.get(timeout=WAIT))
