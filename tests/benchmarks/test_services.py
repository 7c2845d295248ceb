"""The servers and workers that tests and benchmarks start."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.support.servers import Valkey, valkey
from tests.support.waiting import ServiceError, wait_until
from tests.support.workers import Worker, celery_worker


def test_wait_until_returns_what_the_predicate_said() -> None:
    answers = iter([0, None, 7])
    assert wait_until(lambda: next(answers), "the third answer") == 7


def test_wait_until_says_what_it_waited_for() -> None:
    with pytest.raises(TimeoutError, match="the moon"):
        wait_until(lambda: False, "the moon", timeout=0.02)


@pytest.mark.redis
def test_an_embedded_server_leaves_nothing_even_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), valkey(maxmemory="8mb") as url:
        assert redis.Redis.from_url(url).config_get("maxmemory") == {"maxmemory": "8388608"}
        raise KeyboardInterrupt
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(url).ping()


@pytest.mark.redis
def test_a_killed_server_comes_back_with_what_it_had_saved() -> None:
    server = Valkey(appendonly="yes", appendfsync="always")
    try:
        server.start()
        client = redis.Redis.from_url(server.url)
        client.set("kept", 1)
        server.kill()
        server.start()
        assert client.get("kept") == b"1"
    finally:
        server.close()
    assert not server.directory.exists()


@pytest.mark.redis
def test_a_server_that_dies_at_once_is_an_error_with_its_own_words() -> None:
    with pytest.raises(ServiceError, match="Bad directive"), valkey(no_such_option=1):
        pass


def test_a_database_that_holds_something_is_refused_and_left_alone(
    redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_client.set("precious", 1)
    monkeypatch.setenv("REDIS_URL", redis_url)
    with pytest.raises(ServiceError, match="holds 1 keys"), valkey():
        pass
    assert redis_client.get("precious") == b"1"


def test_a_borrowed_database_is_given_back_empty(
    redis_client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    with valkey() as url:
        assert url == redis_url
        redis_client.set("ours", 1)
    assert redis_client.dbsize() == 0


def test_a_worker_answers_and_leaves_with_all_its_children(start_worker: Callable[..., Worker]) -> None:
    worker = start_worker("benchmarks.apps.stock_app", args=["-P", "prefork", "-c", "2"])
    assert worker.alive()
    worker.terminate()
    assert worker.wait() == 0
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(worker.pid, 0)


def test_a_killed_worker_takes_its_children_along(start_worker: Callable[..., Worker]) -> None:
    worker = start_worker("benchmarks.apps.stock_app", args=["-P", "prefork", "-c", "2"])
    worker.kill()
    assert worker.wait() == -9


@pytest.mark.worker
def test_a_worker_that_cannot_start_is_an_error_with_its_own_words(redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no_such_app"), celery_worker("no_such_app", redis_url):
        pass
