"""The buffers of leases: acknowledgements and messages to give back are sent later, and never lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import redis
from batchery.worker.broker import Leases, Queue, ResultRetention, Settled, Settlement

from tests.support.leases import Lists, MakeLeases, claim_all, settle
from tests.support.servers import valkey


def test_an_acknowledgement_is_sent_by_the_next_flush(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put("a", "b")
    first, second = claim_all(leases, queue)
    leases.acknowledge(first)
    assert lists.leased() == {first.tag, second.tag}
    assert leases.has_buffered.is_set()
    leases.flush()
    assert lists.leased() == {second.tag}
    assert leases.held() == [second]
    assert not leases.has_buffered.is_set()


def test_a_settle_takes_buffered_acknowledgements_along_in_its_script(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("a", "b", "c")
    claims = claim_all(leases, queue)
    for claim in claims[:2]:
        leases.acknowledge(claim)
    redis_client.config_resetstat()
    assert settle(leases, claims[2:]) == [True]
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert lists.leased() == set()


def test_a_settle_answers_for_its_own_settlements_only(leases: Leases, lists: Lists, queue: Queue) -> None:
    other = Lists(lists.client, Queue("other"))
    lists.put("a", "b")
    other.put("c")
    a, b, c = claim_all(leases, queue, other.queue)
    leases.give_back([b])
    leases.acknowledge(c)
    leases.acknowledge(b)
    assert leases.settle([Settlement(a)], ResultRetention()) == [Settled.DONE]
    assert leases.settle([], ResultRetention()) == []
    assert lists.labels() == ["b"]
    assert other.leased() == set()


def test_an_acknowledgement_that_was_sent_is_not_sent_again(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("a")
    leases.acknowledge(claim_all(leases, queue)[0])
    leases.flush()
    redis_client.config_resetstat()
    leases.flush()
    assert "cmdstat_evalsha" not in redis_client.info("commandstats")


def test_messages_to_give_back_go_back_in_claim_order_with_the_next_flush(
    leases: Leases, lists: Lists, queue: Queue
) -> None:
    lists.put(*range(4))
    claims = claim_all(leases, queue)
    for index in (2, 0, 1):
        leases.give_back_soon(claims[index])
    assert settle(leases, claims[3:]) == [True]
    assert lists.labels() == []
    leases.flush()
    assert lists.labels() == [0, 1, 2]
    assert leases.held() == []


def test_leaving_acknowledges_first_and_then_gives_the_rest_back(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put("a", "b")
    leases.acknowledge(claim_all(leases, queue)[0])
    leases.leave()
    assert lists.labels() == ["b"]
    assert lists.leased() == set()


@pytest.fixture
def own_server() -> Iterator[str]:
    with valkey(maxmemory_policy="noeviction") as url:
        yield url


def test_an_error_loses_nothing_that_is_buffered(make_leases: MakeLeases, queue: Queue, own_server: str) -> None:
    server = redis.Redis.from_url(own_server)
    lists = Lists(server, queue)
    lists.put("a", "b", "c")
    leases = make_leases(own_server)
    a, b, c = claim_all(leases, queue)
    leases.acknowledge(a)
    leases.give_back_soon(b)
    server.replicaof("127.0.0.1", "1")
    try:
        for refused in (leases.flush, lambda: settle(leases, [c]), leases.flush, leases.leave):
            with pytest.raises(redis.RedisError, match=r"(?i)read.?only"):
                refused()
    finally:
        server.replicaof("no", "one")
    assert lists.leased() == {a.tag, b.tag, c.tag}
    assert settle(leases, [c]) == [True]
    leases.flush()
    assert lists.labels() == ["b"]
    assert lists.leased() == set()
    server.close()


def test_threads_that_acknowledge_flush_and_settle_at_once_lose_nothing(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put(*range(300))
    claims = claim_all(leases, queue)

    def acknowledge(part: int) -> None:
        for claim in claims[part:200:2]:
            leases.acknowledge(claim)

    def flush() -> None:
        for _ in range(20):
            leases.flush()

    def settle_rest() -> None:
        for start in range(200, 300, 10):
            settle(leases, claims[start : start + 10])

    actions = [lambda: acknowledge(0), lambda: acknowledge(1), flush, settle_rest]
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leases.flush()
    assert lists.leased() == set()
    assert leases.held() == []
    assert len(redis_client.keys("result-*")) == 100
