"""Claiming: what is taken, in which order, how much of it, and under which lease."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import redis
from batchery.worker.broker import Claim, HeldAs, Leases, Queue, connect
from kombu import Connection
from kombu import Queue as KombuQueue

from tests.support.leases import ALL, ANY_SIZE, Lists, MakeLeases, claim_all, label_of, labels, message, settle

ODD_NAMES = [
    "with spaces",
    'quo"te',
    "back\\slash",
    "it's",
    "naïve-ünïcode-队列",
    "a,b{c}",
    "sep\x06\x16",
    "new\nline",
    "100%d",
]


def test_the_oldest_message_is_claimed_first(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put(*range(40))
    claims = claim_all(leases, queue)
    assert labels(claims) == list(range(40))
    assert [claim.seq for claim in claims] == sorted(claim.seq for claim in claims)
    assert lists.labels() == []


def test_a_lower_priority_number_is_claimed_first(leases: Leases, lists: Lists, queue: Queue) -> None:
    for priority in (9, 0, 6, 3, 0):
        lists.put(f"{priority}a", f"{priority}b", priority=priority)
    assert labels(claim_all(leases, queue)) == ["0a", "0b", "0a", "0b", "3a", "3b", "6a", "6b", "9a", "9b"]


def test_priority_counts_before_the_order_of_queues(leases: Leases, redis_client: redis.Redis) -> None:
    one, other = Queue("one"), Queue("other")
    for queue in (one, other):
        Lists(redis_client, queue).put(f"{queue.name} late", priority=3)
        Lists(redis_client, queue).put(f"{queue.name} early")
    assert labels(claim_all(leases, other, one)) == ["other early", "one early", "other late", "one late"]


def test_messages_beyond_the_limit_stay_in_the_queue(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put(*range(10))
    assert labels(leases.claim([queue], 3, ANY_SIZE)) == [0, 1, 2]
    assert lists.labels() == list(range(3, 10))
    assert labels(leases.claim([queue], 3, ANY_SIZE)) == [3, 4, 5]
    assert len(lists.leased()) == 6


@pytest.mark.parametrize("fitting", [1, 2, 15, 16, 17, 33])
def test_a_claim_is_bounded_in_bytes(leases: Leases, lists: Lists, queue: Queue, fitting: int) -> None:
    lists.put(*range(10, 60))
    size = len(message(10))
    assert labels(leases.claim([queue], ALL, fitting * size)) == list(range(10, 10 + fitting))
    assert lists.labels() == list(range(10 + fitting, 60))
    assert leases.bytes_of(HeldAs.JOB) == fitting * size


def test_a_message_above_the_bound_is_taken_alone(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put("x" * 10_000, "small", "y" * 10_000)
    assert labels(leases.claim([queue], ALL, 2000)) == ["x" * 10_000]
    assert labels(leases.claim([queue], ALL, 2000)) == ["small"]
    assert labels(leases.claim([queue], ALL, 2000)) == ["y" * 10_000]


def test_the_bound_in_bytes_holds_over_priorities_and_queues(leases: Leases, redis_client: redis.Redis) -> None:
    one, other = Lists(redis_client, Queue("one")), Lists(redis_client, Queue("other"))
    one.put(10, 11)
    other.put(12, 13)
    one.put(14, priority=3)
    assert labels(leases.claim([one.queue, other.queue], ALL, 3 * len(message(10, queue="other")))) == [10, 11, 14]
    assert one.labels() + other.labels() == [12, 13]


def test_a_claim_from_an_empty_queue_takes_nothing(leases: Leases, lists: Lists, queue: Queue) -> None:
    assert claim_all(leases, queue) == []
    assert leases.withheld == 0
    assert lists.leased() == set()


def test_the_lease_begins_with_the_first_claim_and_ends_after_its_length_by_the_servers_clock(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    leases = make_leases(lease_s=7.0)
    lists.put(1)
    assert len(claim_all(leases, queue)) == 1
    assert redis_client.zscore(queue.workers, leases.worker) == pytest.approx(leases.server_time + 7.0, abs=1)
    assert leases.worker.endswith(f":{leases.tag_worker}")


def test_a_worker_whose_lease_has_run_out_refreshes_it_before_it_claims(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    """What it claimed under a lease that is over would be an orphan at once."""
    late, other = make_leases(), make_leases()
    lists.put("a", "b")
    assert labels(late.claim([queue], 2, ANY_SIZE)) == ["a", "b"]
    lists.run_out(late)
    lists.put("c", "d")
    assert len(late.claim([queue], 1, ANY_SIZE)) == 1
    assert (redis_client.zscore(queue.workers, late.worker) or 0.0) > late.server_time
    other.claim([queue], 0, 0)
    assert other.sweep() == 0
    lists.run_out(late)
    assert other.sweep() == 3
    assert late.claim([queue], 0, ANY_SIZE) == []
    assert late.held() == [], "it has seen that others took its messages"


def test_a_lease_is_in_kombus_format(leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue) -> None:
    lists.put('väl"ue')
    (claim,) = claim_all(leases, queue)
    stored = json.loads(redis_client.hget(queue.unacked, claim.tag) or b"")
    assert stored == [json.loads(claim.message), "", "work"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_queue_may_have_any_name(leases: Leases, redis_client: redis.Redis, name: str) -> None:
    queue = Queue(name)
    lists = Lists(redis_client, queue)
    lists.put("a", "b")
    lists.put("c", priority=6)
    claims = claim_all(leases, queue)
    assert labels(claims) == ["a", "b", "c"]
    assert json.loads(redis_client.hget(queue.unacked, claims[0].tag) or b"")[1:] == ["", name]
    leases.give_back(claims)
    assert lists.labels() == ["a", "b", "c"]
    assert lists.raw()[0] == message("a", queue=name)


@pytest.mark.parametrize("name", ["work", *ODD_NAMES])
@pytest.mark.parametrize("prefix", ["", "app:"])
def test_stock_kombu_can_restore_a_lease(
    redis_url: str, leases: Leases, redis_client: redis.Redis, name: str, prefix: str
) -> None:
    queue = Queue(name, prefix)
    lists = Lists(redis_client, queue)
    lists.put("a", priority=3)
    lists.put("b", priority=3)
    claims = claim_all(leases, queue)
    keys = {"unacked_key": queue.unacked.removeprefix(prefix), "unacked_index_key": "none"}
    with Connection(redis_url, transport_options={**keys, "global_keyprefix": prefix}) as connection:
        channel = connection.default_channel
        KombuQueue(name, channel=channel).declare()
        for claim in reversed(claims):
            channel.qos.restore_by_tag(claim.tag)
    assert lists.labels() == ["a", "b"]
    assert all(json.loads(raw)["properties"]["delivery_info"]["redelivered"] for raw in lists.raw())
    assert lists.leased() == set()


def test_kombus_keys_and_separator_are_those_of_the_channel(
    redis_url: str, redis_client: redis.Redis, leases: Leases
) -> None:
    options = {"global_keyprefix": "app:", "priority_steps": [0, 5], "sep": ":"}
    queue = Queue("work", "app:", (0, 5), ":")
    with Connection(redis_url, transport_options=options) as connection:
        for label, priority in (("late", 5), ("early", 0)):
            channel = connection.default_channel
            payload = channel.prepare_message("body", priority=priority, properties={"delivery_info": {}})
            payload["headers"] = {"label": label}
            channel._put("work", payload)
    assert [json.loads(claim.message)["headers"]["label"] for claim in claim_all(leases, queue)] == ["early", "late"]


# -- Fair share --------------------------------------------------------------------------------------------------------


def workers(make_leases: MakeLeases, queue: Queue, count: int) -> list[Leases]:
    all_of_them = [make_leases() for _ in range(count)]
    for leases in all_of_them:
        leases.refresh([queue])
    return all_of_them


@pytest.mark.parametrize("backlog", [1, 3, 4, 10, 41])
def test_none_of_four_workers_takes_more_than_its_share(
    make_leases: MakeLeases, lists: Lists, queue: Queue, backlog: int
) -> None:
    lists.put(*range(backlog))
    taken = [len(claim_all(leases, queue)) for leases in workers(make_leases, queue, 4)]
    assert sum(taken) == backlog
    assert max(taken) <= math.ceil(backlog / 4)


def test_a_claim_tells_how_many_messages_it_left_to_other_workers(
    make_leases: MakeLeases, lists: Lists, queue: Queue
) -> None:
    first, *_ = workers(make_leases, queue, 4)
    lists.put(*range(8))
    assert len(claim_all(first, queue)) == 2
    assert first.withheld == 6


def test_a_worker_may_claim_everything_while_the_others_claim_nothing(
    make_leases: MakeLeases, lists: Lists, queue: Queue
) -> None:
    """The others claim nothing, as when they run long batches."""
    first, *_ = workers(make_leases, queue, 4)
    lists.put(*range(20))
    order = []
    for _ in range(20):
        claims = claim_all(first, queue)
        order += labels(claims)
        settle(first, claims)
    assert order == list(range(20))


def test_workers_that_died_have_no_share(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    first, *others = workers(make_leases, queue, 4)
    lists.put(*range(8))
    lists.run_out(*others)
    assert len(claim_all(first, queue)) == 8
    first.sweep()
    assert redis_client.zcard(queue.workers) == 1


def test_a_worker_that_left_has_no_share(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    first, *others = workers(make_leases, queue, 2)
    lists.put(*range(8))
    assert len(claim_all(others[0], queue)) == 4
    others[0].leave()
    assert labels(claim_all(first, queue)) == list(range(8))


def test_each_queue_has_its_own_shares(make_leases: MakeLeases, redis_client: redis.Redis) -> None:
    shared, own = Lists(redis_client, Queue("shared")), Lists(redis_client, Queue("own"))
    first, _ = workers(make_leases, shared.queue, 2)
    first.refresh([own.queue])
    shared.put(*range(4))
    own.put(*range(10, 14))
    assert labels(claim_all(first, shared.queue, own.queue)) == [0, 1, 10, 11, 12, 13]
    assert shared.labels() == [2, 3]


def set_aside(leases: Leases, claims: list[Claim], held_as: HeldAs = HeldAs.ETA) -> None:
    for claim in claims:
        leases.change(claim, held_as, claim.size)


@pytest.mark.parametrize("held_as", [held_as for held_as in HeldAs if held_as is not HeldAs.JOB])
def test_what_is_no_job_counts_neither_as_a_workers_own_work_nor_as_work_of_all(
    make_leases: MakeLeases, lists: Lists, queue: Queue, held_as: HeldAs
) -> None:
    first, other = workers(make_leases, queue, 2)
    lists.put(*range(100))
    while claims := claim_all(first, queue):
        set_aside(first, claims, held_as)
    assert len(first.held()) == 100
    lists.put(*range(10))
    assert len(claim_all(first, queue)) == 5
    lists.put(*range(10))
    assert len(claim_all(other, queue)) == 10, "20 jobs are there, and the first worker has 5 of them"


def test_what_was_set_aside_counts_once_it_is_a_job(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    first, other = workers(make_leases, queue, 2)
    lists.put(*range(20))
    claims = claim_all(first, queue)
    set_aside(first, claims)
    first.claim([queue], 0, 0)  # a claim tells what was set aside
    assert len(claim_all(other, queue)) == 5
    set_aside(first, claims, HeldAs.JOB)
    assert len(claim_all(first, queue)) == 0, "it has 10 jobs, the other one has 5, and 5 are left"
    assert len(claim_all(other, queue)) == 5


def test_a_worker_that_died_leaves_nothing_set_aside(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    dead, first, _ = workers(make_leases, queue, 3)
    lists.put(*range(30))
    set_aside(dead, claim_all(dead, queue))
    dead.claim([queue], 0, 0)
    assert redis_client.hgetall(queue.aside) == {dead.worker.encode(): b"10"}
    redis_client.zadd(queue.workers, {dead.worker: 1.0})
    assert len(claim_all(first, queue)) == 15
    assert redis_client.hgetall(queue.aside) == {}


def test_nothing_is_left_to_a_worker_that_drains_or_hangs_until_it_claims_again(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    first, drains = workers(make_leases, queue, 2)
    lists.put(1)
    assert len(claim_all(drains, queue)) == 1
    drains.shares.leave()
    drains.flush()
    drains.refresh([queue])
    lists.put(*range(10))
    assert len(claim_all(first, queue)) == 10
    settle(first, first.held())
    claim_all(drains, queue)
    lists.put(*range(9))
    assert len(claim_all(first, queue)) == 5
    drains.shares.leave()
    drains.leave()
    assert redis_client.hgetall(queue.aside) == {}


def test_an_idle_worker_has_a_share_in_every_backlog(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    """So nothing waits for a worker that does not come, whatever that one is thought to hold."""
    first, *_ = workers(make_leases, queue, 9)
    for number in range(20):
        lists.put(number)
        assert len(claim_all(first, queue)) == 1
        settle(first, first.held())


# -- Lower priorities --------------------------------------------------------------------------------------------------


def test_a_small_part_of_each_claim_is_for_each_lower_priority(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put(*range(100))
    for priority in (3, 6, 9):
        lists.put(*(f"{priority}-{number}" for number in range(10)), priority=priority)
    taken = labels(leases.claim([queue], 64, ANY_SIZE))
    assert taken == [*range(52), *(f"{priority}-{number}" for priority in (3, 6, 9) for number in range(4))]


def test_no_more_than_that_part_is_held_of_a_lower_priority(leases: Leases, lists: Lists, queue: Queue) -> None:
    """Otherwise jobs that wait longest would fill a worker, and those of a higher priority would wait for them."""
    lists.put(*range(500))
    lists.put(*(f"low {number}" for number in range(100)), priority=9)
    for _ in range(10):
        claims = leases.claim([queue], 32, ANY_SIZE)
        settle(leases, [claim for claim in claims if claim.priority == 0])
    low = [claim for claim in leases.held() if claim.priority == 9]
    assert len(low) == 2
    settle(leases, low)
    assert [claim.priority for claim in leases.claim([queue], 32, ANY_SIZE)].count(9) == 2


def test_a_lower_priority_gets_its_part_whatever_floods_another_queue_and_however_large(
    leases: Leases, redis_client: redis.Redis
) -> None:
    flood, other = Lists(redis_client, Queue("flood")), Lists(redis_client, Queue("other"))
    flood.put(*("x" * 1000 + str(number) for number in range(20)))
    other.put("y" * 1000, priority=9)
    claims = leases.claim([flood.queue, other.queue], ALL, 5 * len(message("x" * 1001)))
    assert [claim.queue.name for claim in claims] == [*["flood"] * 4, "other"]


def test_the_smallest_claim_is_not_for_lower_priorities_alone(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put(*range(10))
    lists.put("low", "low", priority=9)
    assert [labels(leases.claim([queue], 1, ANY_SIZE)) for _ in range(4)] == [["low"], [0], [1], [2]]


# -- Many queues -------------------------------------------------------------------------------------------------------


def test_a_claim_from_many_empty_queues_asks_the_server_once(leases: Leases, redis_client: redis.Redis) -> None:
    queues = [Queue(f"queue {number}") for number in range(300)]
    leases.claim(queues, ALL, ANY_SIZE)
    redis_client.config_resetstat()
    assert leases.claim(queues, ALL, ANY_SIZE) == []
    calls = {name: figures["calls"] for name, figures in redis_client.info("commandstats").items()}
    assert sum(calls.values()) < 10
    Lists(redis_client, queues[-1]).put("a", priority=9)
    assert labels(leases.claim(queues, ALL, ANY_SIZE)) == ["a"]


# -- Answers that get lost ---------------------------------------------------------------------------------------------


class LosesAnswers(redis.Connection):
    """Loses the connection after a command was executed, as often as `to_lose` says."""

    to_lose = 0

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().read_response(*args, **kwargs)
        if type(self).to_lose and isinstance(answer, list):
            type(self).to_lose -= 1
            self.disconnect()  # type: ignore[no-untyped-call]
            raise redis.ConnectionError("the answer was lost")
        return answer


def test_a_claim_whose_answer_was_lost_is_given_back_at_the_next_claim(
    redis_url: str, lists: Lists, queue: Queue
) -> None:
    class Losing(LosesAnswers):
        pass

    leases = Leases(connect(Losing, redis.ConnectionPool.from_url(redis_url).connection_kwargs), lease_s=30)
    lists.put(*range(3))
    lists.put(3, priority=3)
    assert labels(leases.claim([queue], 1, ANY_SIZE)) == [3]
    Losing.to_lose = 2  # a claim's answer, and that of giving back what it took
    for limit in (2, ALL):
        with pytest.raises(redis.ConnectionError):
            leases.claim([queue], limit, ANY_SIZE)
    assert lists.labels() == [0, 1, 2]
    claims = claim_all(leases, queue)
    assert labels(claims) == [0, 1, 2]
    assert not any("redelivered" in json.loads(claim.message)["properties"]["delivery_info"] for claim in claims)
    assert len(lists.leased()) == 4


def test_a_claim_whose_answer_was_lost_is_given_back_when_the_worker_leaves(
    redis_url: str, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    class Losing(LosesAnswers):
        pass

    leases = Leases(connect(Losing, redis.ConnectionPool.from_url(redis_url).connection_kwargs), lease_s=30)
    leases.refresh([queue])
    lists.put(*range(3))
    Losing.to_lose = 1
    with pytest.raises(redis.ConnectionError):
        leases.claim([queue], 2, ANY_SIZE)
    assert len(lists.leased()) == 2
    leases.leave()
    assert lists.labels() == [0, 1, 2]
    assert not redis_client.exists(queue.unacked, queue.workers)


def test_label_of_reads_what_message_writes() -> None:
    assert label_of(message('ä"b')) == 'ä"b'
