"""Settling: a result is stored with its acknowledgement, by the holder of the lease only."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis
from batchery.worker.broker import Claim, HeldAs, Leases, Queue, ResultRetention, Settled, Settlement

from tests.support.leases import Lists, MakeLeases, claim_all, label_of, settle


def result(client: redis.Redis, label: object) -> Any:
    return client.get(f"result-{label}")


def answers(leases: Leases, claims: list[Claim], text: str) -> list[Settled]:
    """Settle with `text` as each result."""
    items = [Settlement(claim, f"result-{label_of(claim.message)}", text.encode()) for claim in claims]
    return leases.settle(items, ResultRetention(0, 60))


def test_a_settled_message_is_gone_and_its_result_is_there(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("a", "b")
    claims = claim_all(leases, queue)
    assert settle(leases, claims, expires_s=90) == [True, True]
    assert result(redis_client, "a") == b"result of a"
    assert 80 < redis_client.ttl("result-a") <= 90
    assert lists.leased() == set()
    assert lists.labels() == []
    assert not leases.held()
    assert leases.bytes_of(*HeldAs) == 0


def test_a_result_without_expiry_is_kept(leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue) -> None:
    lists.put("a")
    settle(leases, claim_all(leases, queue), expires_s=0)
    assert redis_client.ttl("result-a") == -1


def test_an_empty_key_only_acknowledges(leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue) -> None:
    lists.put("a", "b")
    first, second = claim_all(leases, queue)
    assert leases.settle([Settlement(first), Settlement(second, "kept", b"1")], ResultRetention()) == [
        Settled.DONE,
        Settled.DONE,
    ]
    assert {*redis_client.keys()} == {b"kept", queue.workers.encode()}


def test_a_stored_result_is_published_to_its_caller(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("a")
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe("result-a")
        pubsub.get_message(timeout=5)
        settle(leases, claim_all(leases, queue))
        published = pubsub.get_message(timeout=5)
    assert published is not None
    assert published["data"] == b"result of a"


@pytest.mark.parametrize("count", [500, 501, 1203])
def test_any_number_is_settled_at_once(leases: Leases, redis_client: redis.Redis, queue: Queue, count: int) -> None:
    redis_client.lpush("work", *(str(index) for index in range(count)))
    claims = leases.claim([queue], count, 10**9)
    items = [Settlement(claim, f"r{claim.seq}", claim.message) for claim in claims]
    assert leases.settle(items, ResultRetention()) == [Settled.DONE] * count
    assert [redis_client.get(f"r{claim.seq}") for claim in claims] == [claim.message for claim in claims]
    assert redis_client.hlen(queue.unacked) == 0


def test_jobs_of_several_queues_are_answered_in_the_order_asked(leases: Leases, redis_client: redis.Redis) -> None:
    one, other = Lists(redis_client, Queue("one")), Lists(redis_client, Queue("other"))
    one.put("a", "b", "c")
    other.put("d", "e")
    a, b, c, d, e = claim_all(leases, one.queue, other.queue)
    leases.give_back([b, e])
    assert settle(leases, [d, b, a, e, c]) == [True, False, True, False, True]


def test_without_a_lease_a_result_is_stored_where_none_is_and_nothing_is_acknowledged(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    slow, other = make_leases(), make_leases()
    lists.put("a", "b")
    claims = claim_all(slow, queue)
    assert settle(slow, claims[1:]) == [True]
    lists.run_out(slow)
    claim_all(other, queue)
    assert other.sweep() == 1
    (again,) = claim_all(other, queue)
    assert answers(slow, claims[:1], "early") == [Settled.LATE]
    assert redis_client.ttl("result-a") > 0
    assert result(redis_client, "a") == b"early"
    assert lists.leased() == {again.tag}, "it is the other's to acknowledge"
    assert settle(other, [again]) == [True]
    assert result(redis_client, "a") == b"result of a"
    assert answers(slow, claims, "late") == [Settled.LOST, Settled.LOST]
    assert result(redis_client, "a") == b"result of a"


def test_what_the_server_has_forgotten_is_answered_and_announced(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    """A server that comes back without its data knows neither the message nor its lease."""
    lists.put("a", "b")
    claims = claim_all(leases, queue)
    redis_client.flushdb()
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe("result-a")
        pubsub.get_message(timeout=5)
        assert answers(leases, claims, "computed") == [Settled.LATE, Settled.LATE]
        published = pubsub.get_message(timeout=5)
    assert published is not None
    assert published["data"] == b"computed"
    assert redis_client.keys("batchery:*") == []
    assert not leases.held()


def test_nothing_is_settled_twice(leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue) -> None:
    lists.put("a")
    claims = claim_all(leases, queue)
    assert settle(leases, claims) == [True]
    redis_client.set("result-a", "of another")
    assert settle(leases, claims) == [False]
    assert result(redis_client, "a") == b"of another"


def test_the_same_claim_twice_in_one_settle_is_answered_once(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put("a")
    (claim,) = claim_all(leases, queue)
    settle(leases, [claim, claim])
    assert lists.leased() == set()


def test_of_several_threads_that_settle_the_same_claims_only_one_succeeds(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put(*range(20))
    leases = make_leases()
    claims = claim_all(leases, queue)
    answers: list[list[bool]] = []
    threads = [threading.Thread(target=lambda: answers.append(settle(leases, claims))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sum(column) for column in zip(*answers, strict=True)] == [1] * 20


def database(url: str, number: int) -> str:
    return f"{url.rpartition('/')[0]}/{number}"


@pytest.fixture
def two_databases(many_databases: str) -> tuple[str, str]:
    return database(many_databases, 3), database(many_databases, 5)


def test_results_may_live_in_another_database(
    two_databases: tuple[str, str], make_leases: MakeLeases, queue: Queue
) -> None:
    broker_url, results_url = two_databases
    leases = make_leases(broker_url)
    with redis.Redis.from_url(broker_url) as broker, redis.Redis.from_url(results_url) as results:
        lists = Lists(broker, queue)
        lists.put("a", "b")
        claims = claim_all(leases, queue)
        assert settle(leases, claims[:1], db=5) == [True]
        assert broker.keys("result*") == []
        assert results.get("result-a") == b"result of a"
        assert lists.leased() == {claims[1].tag}
        # The connection is where it was.
        lists.put("c")
        assert len(claim_all(leases, queue)) == 1


def test_lost_leases_among_others_are_answered_in_their_place(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put(*"abcdef")
    claims: list[Claim] = claim_all(leases, queue)
    leases.give_back(claims[1:5:2])
    assert settle(leases, claims) == [True, False, True, False, True, True]
    assert lists.labels() == ["b", "d"]
