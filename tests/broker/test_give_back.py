"""Giving back: by their worker, or because their lease ran out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from batchery.worker.broker import Leases, Queue

from tests.support.leases import Lists, MakeLeases, claim_all, labels, message, settle


def test_messages_given_back_are_first_in_line_in_claim_order(leases: Leases, lists: Lists, queue: Queue) -> None:
    lists.put(*range(6))
    claims = claim_all(leases, queue)
    lists.put(6, 7)
    leases.give_back([claims[index] for index in (4, 1, 5, 3)])
    assert lists.labels() == [1, 3, 4, 5, 6, 7]
    assert labels(leases.held()) == [0, 2]


def test_a_message_given_back_is_unchanged_to_the_byte(
    leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    raw = [message("a"), b'{"b":  1}', b"not json at all", "ünïcode".encode(), b"\x00\xff\r\n", b""]
    redis_client.lpush("work", *raw)
    leases.give_back(claim_all(leases, queue))
    assert lists.raw() == raw


def test_each_message_goes_back_to_its_priority_and_queue(leases: Leases, redis_client: redis.Redis) -> None:
    one, other = Lists(redis_client, Queue("one")), Lists(redis_client, Queue("other"))
    for lists in (one, other):
        for priority in (0, 3, 6, 9):
            lists.put(f"{priority}a", f"{priority}b", priority=priority)
    before = one.raw(), other.raw()
    leases.give_back(reversed(claim_all(leases, other.queue, one.queue)))
    assert (one.raw(), other.raw()) == before
    assert redis_client.llen("one\x06\x166") == 2


def test_giving_back_a_lost_claim_changes_nothing(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    slow, other = make_leases(), make_leases()
    lists.put("a")
    claims = claim_all(slow, queue)
    lists.run_out()
    other.claim([queue], 0, 0)
    other.sweep()
    mine = claim_all(other, queue)
    slow.give_back(claims)
    assert lists.labels() == []
    assert lists.leased() == {mine[0].tag}


def test_leaving_gives_everything_back(leases: Leases, redis_client: redis.Redis, lists: Lists, queue: Queue) -> None:
    lists.put(*range(5))
    claim_all(leases, queue)
    leases.refresh([queue])
    leases.leave()
    assert lists.labels() == list(range(5))
    assert not redis_client.exists(queue.unacked, queue.index, queue.workers)


# -- Orphans -----------------------------------------------------------------------------------------------------------


def orphaned(make_leases: MakeLeases, lists: Lists) -> Leases:
    """Let a worker claim all and die; return another one, that knows the queue."""
    claim_all(make_leases(), lists.queue)
    lists.run_out()
    other = make_leases()
    other.claim([lists.queue], 0, 0)
    return other


def test_orphans_go_back_to_the_front_in_order(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    lists.put(*range(5))
    other = orphaned(make_leases, lists)
    lists.put(5, 6)
    assert other.sweep() == 5
    assert lists.labels() == list(range(7))
    assert lists.leased() == set()


def test_many_orphans_go_back_in_order(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    """More than one sweep takes."""
    lists.put(*range(450))
    other = orphaned(make_leases, lists)
    while other.sweep():
        pass
    assert lists.labels() == list(range(450))


def test_a_sweep_gives_back_no_more_than_it_may(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    lists.put(*range(5))
    other = orphaned(make_leases, lists)
    assert other.sweep(most=3) == 3
    assert other.sweep(most=3) == 2


def test_a_lease_that_has_not_run_out_is_left_alone(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    holder, other = make_leases(), make_leases()
    lists.put("a")
    claims = claim_all(holder, queue)
    claim_all(other, queue)
    assert other.sweep() == 0
    assert lists.leased() == {claims[0].tag}


def test_a_refreshed_lease_does_not_run_out(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    holder, other = make_leases(), make_leases()
    lists.put("a")
    claims = claim_all(holder, queue)
    lists.run_out()
    holder.refresh([queue])
    claim_all(other, queue)
    assert other.sweep() == 0
    assert settle(holder, claims) == [True]


def test_a_refresh_finds_out_which_leases_were_lost(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    slow = make_leases()
    lists.put(*"abc")
    claims = claim_all(slow, queue)
    redis_client.zadd(queue.index, {claims[1].tag: 1.0})
    slow.sweep()
    slow.refresh([queue])
    assert labels(slow.held()) == ["a", "c"]
    assert [slow.holds(claim) for claim in claims] == [True, False, True]
    assert [slow.still_held(claim) for claim in claims] == [True, False, True]


ODD_MESSAGES: dict[str, tuple[bytes, Any]] = {
    "kombu's": (message("a"), True),
    "compact": (json.dumps(json.loads(message("a")), separators=(",", ":")).encode(), True),
    "no delivery_info": (b'{"body": "", "properties": {}}', None),
    "an empty delivery_info": (b'{"properties": {"delivery_info": {}}}', True),
    "spaces in an empty delivery_info": (b'{"properties": {"delivery_info": {  } } }', True),
    "redelivered before": (message("a", redelivered=True), True),
    "said not to be": (message("a", redelivered=False), True),
    "a header of that name": (
        b'{"headers": {"delivery_info": {"x": 1}}, "properties": {"delivery_info": {"exchange": ""}}}',
        True,
    ),
    "a header that says so": (
        b'{"headers": {"redelivered": true}, "properties": {"delivery_info": {"exchange": ""}}}',
        True,
    ),
    "the words in a text": (
        json.dumps(
            {
                "headers": {"x": '"delivery_info": {"redelivered": true'},
                "properties": {"delivery_info": {"exchange": ""}},
            }
        ).encode(),
        True,
    ),
}


@pytest.mark.parametrize(("raw", "flag"), ODD_MESSAGES.values(), ids=ODD_MESSAGES)
def test_an_orphan_says_that_it_was_delivered_before(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue, raw: bytes, flag: Any
) -> None:
    redis_client.lpush("work", raw)
    orphaned(make_leases, lists).sweep()
    (after,) = lists.raw()
    decoded, original = json.loads(after), json.loads(raw)
    assert decoded["properties"].pop("delivery_info", {}).pop("redelivered", None) == flag
    assert original["properties"].pop("delivery_info", {}).pop("redelivered", None) in (None, True, False)
    assert decoded == original


@pytest.mark.parametrize("raw", [b"", b"no json", b"\x00\xff", b'{"delivery_info'])
def test_an_orphan_that_is_no_message_comes_back_as_it_was(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue, raw: bytes
) -> None:
    redis_client.lpush("work", raw)
    orphaned(make_leases, lists).sweep()
    assert lists.raw() == [raw]


def test_a_message_given_back_by_its_holder_does_not_count_as_delivered(
    leases: Leases, lists: Lists, queue: Queue
) -> None:
    lists.put("a")
    leases.give_back(claim_all(leases, queue))
    assert "redelivered" not in json.loads(lists.raw()[0])["properties"]["delivery_info"]
