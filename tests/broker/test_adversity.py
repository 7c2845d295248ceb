"""Servers that are full, read-only or forbid things: what cannot be done fails, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from batchery.worker.broker import Leases, Queue

from tests.support.leases import ALL, ANY_SIZE, Lists, MakeLeases, claim_all, labels, message, settle
from tests.support.servers import valkey


@pytest.fixture(scope="module")
def small_server() -> Iterator[str]:
    with valkey(maxmemory="0", maxmemory_policy="noeviction") as url:
        yield url


@pytest.fixture
def small(small_server: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(small_server) as client:
        client.config_set("maxmemory", 0)
        client.flushall()
        yield client
        client.config_set("maxmemory", 0)


def fill_up(client: redis.Redis) -> None:
    """From now on the server refuses every write that needs memory."""
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        client.set("one more", 1)


@pytest.fixture
def at_small(small: redis.Redis, small_server: str, make_leases: MakeLeases) -> Leases:
    return make_leases(small_server)


def test_a_full_server_still_lets_us_claim_and_settle(at_small: Leases, small: redis.Redis, queue: Queue) -> None:
    lists = Lists(small, queue)
    lists.put(*range(20))
    fill_up(small)
    claims = at_small.claim([queue], 12, ANY_SIZE)
    assert labels(claims) == list(range(12))
    assert settle(at_small, claims) == [True] * 12
    assert lists.labels() == list(range(12, 20))
    assert small.get("result-11") == b"result of 11"


def test_on_a_full_server_leases_are_refreshed(at_small: Leases, small: redis.Redis, queue: Queue) -> None:
    lists = Lists(small, queue)
    lists.put("a")
    claim_all(at_small, queue)
    lists.run_out()
    fill_up(small)
    at_small.refresh([queue])
    assert (small.zscore(queue.workers, at_small.worker) or 0.0) > 1.0


def test_on_a_full_server_messages_can_be_given_back(at_small: Leases, small: redis.Redis, queue: Queue) -> None:
    lists = Lists(small, queue)
    lists.put(*range(3))
    claims = claim_all(at_small, queue)
    fill_up(small)
    at_small.give_back(claims)
    assert lists.labels() == [0, 1, 2]
    assert lists.leased() == set()


def test_on_a_full_server_orphans_run_again(at_small: Leases, small: redis.Redis, queue: Queue) -> None:
    lists = Lists(small, queue)
    lists.put(*range(3))
    claim_all(at_small, queue)
    lists.run_out()
    fill_up(small)
    assert at_small.sweep() == 3
    assert lists.labels() == [0, 1, 2]


def test_a_script_that_may_not_store_loses_nothing(
    small: redis.Redis, small_server: str, make_leases: MakeLeases, queue: Queue
) -> None:
    small.acl_setuser(
        "worker",
        enabled=True,
        passwords="+secret",
        keys="*",
        channels="*",
        categories=["+@all"],
        commands=["-set", "-setex"],
    )
    lists = Lists(small, queue)
    lists.put("a", "b")
    leases = make_leases(small_server, username="worker", password="secret")
    claims = claim_all(leases, queue)
    with pytest.raises(redis.ResponseError, match=r"(?i)acl|permission"):
        settle(leases, claims)
    assert lists.leased() == {claim.tag for claim in claims}
    small.acl_setuser("worker", commands=["+set", "+setex"])
    assert settle(leases, claims) == [True, True]


def test_a_server_that_turns_into_a_replica_loses_nothing(at_small: Leases, small: redis.Redis, queue: Queue) -> None:
    lists = Lists(small, queue)
    lists.put("a", "b", "c")
    claims = at_small.claim([queue], 2, ANY_SIZE)
    small.replicaof("127.0.0.1", "1")
    try:
        for refused in (
            lambda: settle(at_small, claims),
            lambda: at_small.give_back(claims),
            lambda: at_small.claim([queue], ALL, ANY_SIZE),
        ):
            with pytest.raises(redis.RedisError, match=r"(?i)read.?only"):
                refused()
        assert lists.labels() == ["c"]
        assert lists.leased() == {claim.tag for claim in claims}
    finally:
        small.replicaof("no", "one")
    assert settle(at_small, claims) == [True, True]


def test_scripts_that_the_server_forgot_are_sent_again(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("a", "b")
    first = leases.claim([queue], 1, ANY_SIZE)
    redis_client.script_flush()
    second = leases.claim([queue], 1, ANY_SIZE)
    redis_client.script_flush()
    assert settle(leases, first + second) == [True, True]


@pytest.mark.parametrize("name", ["{braces}", "{", "a:b", "with spaces ", "*", "Büro-鍵", 'a "quoted" one', "\\", "%s"])
def test_queues_may_have_any_name(make_leases: MakeLeases, redis_client: redis.Redis, name: str) -> None:
    queue, leases, other = Queue(name), make_leases(), make_leases()
    lists = Lists(redis_client, queue)
    lists.put(*range(3))
    leases.give_back(claim_all(leases, queue))
    assert lists.labels() == [0, 1, 2]
    claim_all(leases, queue)
    lists.run_out()
    other.claim([queue], 0, 0)  # it knows the queue now
    assert other.sweep() == 3
    assert lists.labels() == [0, 1, 2]
    assert settle(other, claim_all(other, queue)) == [True] * 3
    assert lists.labels() == []
    assert lists.leased() == set()


def test_a_row_of_huge_messages_fills_neither_a_claim_nor_the_servers_scripts(
    leases: Leases, redis_client: redis.Redis, queue: Queue
) -> None:
    size, count = 2 * 1024 * 1024, 12
    for _ in range(count):
        redis_client.lpush(queue.name, message("x" * size))
    before = scripts_memory(redis_client)
    claims = leases.claim([queue], ALL, 2 * size)
    assert len(claims) == 1
    assert scripts_memory(redis_client) - before < 8 * len(claims[0].message), "it took far fewer than there are"
    leases.give_back(claims)
    assert redis_client.llen(queue.name) == count


def scripts_memory(client: redis.Redis) -> int:
    memory: dict[str, int] = client.info("memory")
    return memory["used_memory_lua"]


def test_orphans_of_many_bytes_are_put_back_in_several_steps_in_order(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists.put(*range(5))
    claims = claim_all(leases, queue)
    lists.run_out()
    monkeypatch.setattr("batchery.worker.tuning.SWEEP_MAX_BYTES", 2 * len(claims[0].message) + 200)
    redis_client.config_resetstat()
    assert leases.sweep() == 5
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == 3
    assert lists.labels() == list(range(5))


def test_results_of_many_bytes_are_settled_in_several_steps(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server closes the connection of a client that sends more than 1 GB at once."""
    monkeypatch.setattr("batchery.worker.tuning.SETTLE_MAX_BYTES", 30)
    lists.put(*range(5))
    claims = claim_all(leases, queue)
    redis_client.config_resetstat()
    assert settle(leases, claims) == [True] * 5
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == 3
    assert redis_client.get("result-4") == b"result of 4"


def test_leases_go_by_the_servers_clock_whatever_the_workers_says(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for skew_s in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda skew_s=skew_s: now + skew_s)
        leases = make_leases(lease_s=30)
        lists.put("a")
        (claim,) = claim_all(leases, queue)
        assert redis_client.zscore(queue.workers, leases.worker) == pytest.approx(now + 30, abs=20)
        assert make_leases().sweep() == 0
        assert settle(leases, [claim]) == [True]
