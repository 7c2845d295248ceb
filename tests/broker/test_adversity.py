"""Servers that are full, read-only or forbid things: what cannot be done fails, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from batchery.worker.broker import Leases, Queue

from benchmarks.services import valkey
from tests.broker.conftest import ALL, ANY_SIZE, Lists, MakeLeases, claim_all, labels, settle


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
    claims = claim_all(at_small, queue)
    lists.run_out()
    fill_up(small)
    at_small.refresh([queue])
    assert small.zscore(queue.index, claims[0].tag) > 1.0  # type: ignore[operator]


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
