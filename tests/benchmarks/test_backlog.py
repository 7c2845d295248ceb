"""What the benchmarks feed their workers, and the tools that measure it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest
import redis

from benchmarks.backlog import QUEUE, load
from benchmarks.contenders import floor
from benchmarks.proxy import delayed
from benchmarks.texts import texts
from tests.support.paths import ROOT


def test_texts_are_the_same_on_every_run() -> None:
    code = "from benchmarks.texts import texts; print(texts(300))"
    command = [sys.executable, "-c", code]
    printed = {subprocess.check_output(command, env={"PYTHONHASHSEED": seed}, cwd=ROOT) for seed in ("1", "2")}
    assert len(printed) == 1


def test_texts_are_different_real_texts_of_many_lengths() -> None:
    sample = texts(500)
    assert len(set(sample)) == 500
    assert sample == texts(600)[:500]
    lengths = sorted(len(text.split()) for text in sample)
    assert lengths[25] < 10 < 100 < lengths[-25]


def test_more_texts_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="not 1000000"):
        texts(1_000_000)


def round_trip_ms(client: redis.Redis) -> float:
    start = time.perf_counter()
    client.ping()
    return 1000 * (time.perf_counter() - start)


def test_the_proxy_delays_each_way_and_leaves_bandwidth_alone(redis_url: str) -> None:
    with delayed(redis_url, rtt_ms=10) as url, redis.Redis.from_url(url) as client:
        client.ping()
        assert statistics.median(round_trip_ms(client) for _ in range(20)) >= 10
        start = time.perf_counter()
        with client.pipeline(transaction=False) as pipe:
            for index in range(1000):
                pipe.set(f"key-{index}", "x" * 1000)
            pipe.execute()
        assert time.perf_counter() - start < 5  # one by one they would take 10 s


def test_without_a_delay_there_is_no_proxy(redis_url: str) -> None:
    with delayed(redis_url, rtt_ms=0) as url:
        assert url == redis_url


def test_the_floor_answers_everything_and_leaves_nothing(redis_url: str, redis_client: redis.Redis) -> None:
    with load(redis_url, "small", 7) as messages, floor(redis_url, 700, "small") as alive:
        for count in (100, 600):
            ids = messages.prepare(count)
            assert messages.release(ids, alive, timeout=20) > 0
            messages.check(ids)
    assert not redis_client.exists(QUEUE, "floor:unacked", "floor:unacked_index")
    result = redis_client.get(f"celery-task-meta-{ids[0]}")
    assert isinstance(result, bytes)
    assert b'"result":7' in result
    assert 86_000 < redis_client.ttl(f"celery-task-meta-{ids[0]}") <= 86_400


def test_a_failed_task_is_no_throughput(redis_url: str, redis_client: redis.Redis) -> None:
    with load(redis_url, "small", 7) as messages:
        redis_client.set("celery-task-meta-a", '{"status": "SUCCESS", "result": 7}')
        redis_client.set("celery-task-meta-b", '{"status": "FAILURE", "result": {}}')
        messages.check(["a"])
        with pytest.raises(RuntimeError, match="task b"):
            messages.check(["a", "b"])
