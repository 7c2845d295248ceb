"""A backend that is not exactly Celery's own is asked, as Celery asks it; the others are bypassed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import kombu.utils.json
import pytest
from batchery.worker.broker import Settled
from celery.backends.redis import RedisBackend
from kombu.serialization import registry
from kombu.utils.encoding import ensure_bytes

from tests.support.backends import SEAL, SECRET, RenamedBackend, SealedBackend, seal, unseal
from tests.support.houses import QUEUE, House, house_at
from tests.support.leases import bytes_of

# Celery's own way to store a result.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

MonkeyPatch = pytest.MonkeyPatch


@pytest.fixture
def house(redis_url: str) -> Iterator[House]:
    with house_at(redis_url) as house:
        yield house


def by_a_subclass(house: House, _: MonkeyPatch) -> None:
    house.app.conf.result_backend = f"{SealedBackend.__module__}:{SealedBackend.__qualname__}+{house.url}"


def by_a_changed_instance(house: House, _: MonkeyPatch) -> None:
    backend = house.app.backend
    encode, decode = backend.encode, backend.decode
    backend.encode = lambda data: seal(encode(data))
    backend.decode = lambda payload: payload and decode(unseal(payload))


def by_a_changed_class(house: House, patch: MonkeyPatch) -> None:
    encode, decode = RedisBackend.encode, RedisBackend.decode
    patch.setattr(RedisBackend, "encode", lambda self, data: seal(encode(self, data)))
    patch.setattr(RedisBackend, "decode", lambda self, payload: payload and decode(self, unseal(payload)))


def by_a_serializer_of_that_name(house: House, patch: MonkeyPatch) -> None:
    patch.setitem(registry._encoders, "json", registry._encoders["json"])
    patch.setitem(registry._decoders, "application/json", registry._decoders["application/json"])
    registry.register(
        "json",
        lambda data: seal(kombu.utils.json.dumps(data)).decode(),
        lambda data: kombu.utils.json.loads(unseal(ensure_bytes(data))),
        "application/json",
        "utf-8",
    )


WAYS = [by_a_subclass, by_a_changed_instance, by_a_changed_class]


def is_sealed(house: House, task_id: str) -> bool:
    return bytes(house.client.get(f"celery-task-meta-{task_id}") or b"").startswith(SEAL)  # type: ignore[arg-type]


def send(house: House, *values: Any, **options: Any) -> list[str]:
    return [house.app.tasks["t"].apply_async((value,), **options).id for value in values]


@pytest.mark.parametrize("seals", WAYS)
def test_a_backend_that_encrypts_stores_nothing_in_plain_text(
    house: House, monkeypatch: MonkeyPatch, seals: Callable[[House, MonkeyPatch], None]
) -> None:
    seals(house, monkeypatch)
    ids = send(house, SECRET, SECRET, 3)
    worker = house.worker()
    assert worker.settle(worker.claim()) == [Settled.DONE] * 3
    assert all(is_sealed(house, task_id) for task_id in ids)
    assert [house.app.AsyncResult(task_id).get(timeout=5) for task_id in ids] == [[SECRET], [SECRET], [3]]
    assert house.client.hlen(QUEUE.unacked) == 0


def test_a_serializer_that_took_the_name_of_json_is_used(house: House, monkeypatch: MonkeyPatch) -> None:
    (task_id,) = send(house, SECRET)
    worker = house.worker()
    outcomes = worker.claim()
    by_a_serializer_of_that_name(house, monkeypatch)
    assert worker.settle(outcomes) == [Settled.DONE]
    assert is_sealed(house, task_id)


@pytest.mark.parametrize("seals", [by_a_changed_instance, by_a_changed_class])
def test_a_backend_that_is_changed_while_its_worker_runs_is_asked_from_then_on(
    house: House, monkeypatch: MonkeyPatch, seals: Callable[[House, MonkeyPatch], None]
) -> None:
    worker = house.worker()
    (before,) = send(house, 1)
    worker.finish(worker.claim())
    seals(house, monkeypatch)
    (behind,) = send(house, SECRET)
    worker.finish(worker.claim())
    assert [is_sealed(house, task_id) for task_id in (before, behind)] == [False, True]


def test_a_backend_that_encrypts_counts_its_chords_by_itself(house: House, monkeypatch: MonkeyPatch) -> None:
    by_a_subclass(house, monkeypatch)
    group = house.call(3)
    worker = house.worker()
    parts = worker.claim()
    assert worker.settle(parts) == [Settled.NEEDS_CELERY] * 3, "only Celery knows how such a backend counts"
    for part in parts[:2]:
        worker.tell_celery(part)
    values = bytes_of(house.client.zrange(f"celery-taskset-meta-{group}.j", 0, -1))
    assert [value.startswith(SEAL) for value in values] == [True, True]


def own_backend(house: House, kind: type[RedisBackend], db: int) -> RedisBackend:
    backend = kind(app=house.app, url=f"{house.url.rpartition('/')[0]}/{db}")

    @house.app.task(name="own", shared=False, backend=backend)
    def own(value: Any) -> Any:
        return value

    return backend


@pytest.mark.parametrize("kind", [RedisBackend, SealedBackend, RenamedBackend])
def test_a_tasks_own_backend_gets_its_results_and_no_other_does(many_databases: str, kind: type[RedisBackend]) -> None:
    with house_at(many_databases) as house:
        backend = own_backend(house, kind, 7)
        backend.client.flushdb()
        own, apps = house.app.tasks["own"], house.app.tasks["t"]
        results = [own.delay(1), apps.delay(2), own.delay(3), own.apply_async((4,), ignore_result=True)]
        worker = house.worker()
        assert worker.settle(worker.claim()) == [Settled.DONE] * 4
        assert [result.get(timeout=5) for result in results] == [[1], [2], [3], None]
        assert len(house.client.keys("celery-task-meta-*")) == 1
        assert len(backend.client.keys()) == 2
        assert house.client.hlen(QUEUE.unacked) == 0
        backend.client.flushdb()
        backend.result_consumer.stop()
        backend.client.close()


@pytest.mark.parametrize("seals", [by_a_subclass, lambda house, patch: None], ids=["asked", "bypassed"])
def test_what_was_computed_is_stored_though_its_lease_is_lost_unless_somebody_has_answered(
    house: House, monkeypatch: MonkeyPatch, seals: Callable[[House, MonkeyPatch], None]
) -> None:
    seals(house, monkeypatch)
    nobody, somebody = send(house, "nobody", "somebody")
    worker = house.worker()
    outcomes = worker.claim()
    house.app.backend.store_result(somebody, "another's", "SUCCESS")
    house.client.delete(QUEUE.unacked)
    worker.settle(outcomes)
    results = [house.app.AsyncResult(task_id).get(timeout=5) for task_id in (nobody, somebody)]
    assert results == [["nobody"], "another's"]


def test_results_that_are_stored_without_asking_are_what_the_backend_reads(house: House) -> None:
    (task_id,) = send(house, {"a": [1, None]})
    worker = house.worker()
    worker.finish(worker.claim())
    meta = json.loads(house.client.get(f"celery-task-meta-{task_id}") or b"")
    assert house.app.backend.get_task_meta(task_id)["result"] == meta["result"] == [{"a": [1, None]}]
