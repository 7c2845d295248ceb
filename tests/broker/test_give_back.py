"""Giving back: by their worker, or because their lease ran out."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import pytest
import redis
from batchery.worker.broker import Leases, Queue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.leases import Lists, MakeLeases, claim_all, label_of, labels, message, settle


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
    assert not redis_client.exists(queue.unacked, queue.workers)


def test_leaving_keeps_what_runs_so_that_its_lease_runs_out(
    leases: Leases, make_leases: MakeLeases, lists: Lists, queue: Queue
) -> None:
    lists.put(*range(5))
    claims = claim_all(leases, queue)
    leases.leave({claims[1].tag, claims[2].tag})
    assert lists.labels() == [0, 3, 4]
    assert lists.leased() == {claims[1].tag, claims[2].tag}
    lists.run_out()
    other = make_leases()
    other.claim([queue], 0, 0)
    assert other.sweep() == 2


# -- Orphans -----------------------------------------------------------------------------------------------------------


def orphaned(make_leases: MakeLeases, lists: Lists, running: Collection[int] = ()) -> Leases:
    """Let a worker claim all and die, while these messages run, by place; return another one, that knows the queue."""
    doomed = make_leases()
    claims = claim_all(doomed, lists.queue)
    note = " ".join(claims[place].tag for place in running)
    lists.client.set(f"{lists.queue.running}{doomed.tag_worker}", note, ex=60)
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
    """More than one script takes."""
    lists.put(*range(450))
    other = orphaned(make_leases, lists)
    assert other.sweep() == 450
    assert lists.labels() == list(range(450))
    assert other.sweep() == 0


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
    """Its lease had run out, and a sweep had taken a part of its messages when it was refreshed."""
    slow = make_leases()
    lists.put(*"abc")
    claims = claim_all(slow, queue)
    lists.run_out()
    redis_client.hdel(queue.unacked, claims[1].tag)
    slow.refresh([queue])
    assert labels(slow.held()) == ["a", "c"]
    assert [slow.holds(claim) for claim in claims] == [True, False, True]
    assert slow.still_held(claims) == [True, False, True]


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


# -- Deaths ------------------------------------------------------------------------------------------------------------

#: Stands for a message without the flag.
ABSENT = ...


def info_of(raw: bytes) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(raw)["properties"]["delivery_info"]
    return info


def test_a_message_that_its_task_rejects_goes_to_the_end_as_redelivered_and_counts_no_death(
    leases: Leases, lists: Lists, queue: Queue
) -> None:
    lists.put("kept")
    flags: list[dict[str, Any]] = [{}, {"redelivered": False}, {"redelivered": True}, {"redelivered": 2}]
    for place, flag in enumerate(flags):
        lists.client.lpush("work", message(place, **flag))
    claims = claim_all(leases, queue)
    lists.put("a", "b")
    for place in (4, 2, 1, 3):
        leases.give_back_soon(claims[place], rejected=True)
    leases.flush()
    assert lists.labels() == ["a", "b", 0, 1, 2, 3]
    assert [info_of(raw).get("redelivered") for raw in lists.raw()] == [None, None, True, True, True, 2]
    assert labels(leases.held()) == ["kept"]


@pytest.mark.parametrize(
    ("flag", "ran", "waited"),
    [
        *((flag, 1, True) for flag in (ABSENT, False, True, None, 0, -3, 1.5, "x", "")),
        *((deaths, deaths + 1, deaths) for deaths in (1, 2, 9, 99)),
    ],
    ids=repr,
)
def test_only_an_orphan_that_ran_counts_one_death_more(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, flag: object, ran: int, waited: object
) -> None:
    info: dict[str, Any] = {} if flag is ABSENT else {"redelivered": flag}
    redis_client.lpush("work", message("a", **info), message("b", **info))
    orphaned(make_leases, lists, running=[0]).sweep()
    flags = [info_of(raw)["redelivered"] for raw in lists.raw()]
    assert list(map(repr, flags)) == [repr(ran), repr(waited)]


def test_every_worker_has_a_note_of_its_own(make_leases: MakeLeases, lists: Lists, queue: Queue) -> None:
    lists.put(*range(4))
    doomed = [make_leases(), make_leases()]
    for worker, running in zip(doomed, (0, 1), strict=True):
        claims = worker.claim([queue], 2, 10**9)
        lists.client.set(f"{queue.running}{worker.tag_worker}", claims[running].tag)
    lists.run_out()
    other = make_leases()
    other.claim([queue], 0, 0)
    assert other.sweep() == 4
    flags = {label_of(raw): info_of(raw)["redelivered"] for raw in lists.raw()}
    assert flags == {0: 1, 1: True, 2: True, 3: 1}


#: Texts that look like what the script looks for.
lures = st.sampled_from(
    ['"redelivered": 7', 'x"redelivered', '\\"redelivered": 7', '"delivery_info": {', ", 7", "true"]
)
texts = st.text(st.characters(codec="utf-8"), max_size=8) | lures
without_braces = texts.filter(lambda text: "{" not in text and "}" not in text)
numbers = st.integers(0, 10**6)
scalars = st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | texts
infos = st.dictionaries(
    without_braces.filter(lambda name: name != "redelivered"),
    without_braces | numbers | st.booleans() | st.none(),
    max_size=4,
)
orphans = st.fixed_dictionaries(
    {
        "headers": st.dictionaries(texts, scalars | st.dictionaries(texts, scalars, max_size=3), max_size=4),
        "info": infos,
        "flag": st.just(ABSENT) | st.none() | st.booleans() | numbers | without_braces,
        "place": st.integers(0, 4),
        "compact": st.booleans(),
        "ascii": st.booleans(),
        "ran": st.booleans(),
    }
)


def written(orphan: dict[str, Any]) -> bytes:
    """A message with this `delivery_info`, of which the flag is not always the last part."""
    items = list(orphan["info"].items())
    if orphan["flag"] is not ABSENT:
        items.insert(orphan["place"], ("redelivered", orphan["flag"]))
    properties = {"correlation_id": "x", "delivery_info": dict(items), "priority": 0}
    separators = (",", ":") if orphan["compact"] else None
    whole = {"body": "", "headers": orphan["headers"], "properties": properties}
    return json.dumps(whole, separators=separators, ensure_ascii=orphan["ascii"]).encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(st.lists(orphans, min_size=1, max_size=6))
def test_whatever_a_message_holds_only_its_flag_changes(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, some: list[dict[str, Any]]
) -> None:
    """Python's own JSON is the oracle."""
    redis_client.flushdb()
    expected = []
    for orphan in some:
        raw = written(orphan)
        redis_client.lpush("work", raw)
        whole = json.loads(raw)
        flag = orphan["flag"]
        deaths = (flag if type(flag) is int else 0) + orphan["ran"]
        whole["properties"]["delivery_info"]["redelivered"] = deaths or True
        expected.append(whole)
    running = [place for place, orphan in enumerate(some) if orphan["ran"]]
    assert orphaned(make_leases, lists, running).sweep() == len(some)
    after = [json.loads(raw) for raw in lists.raw()]
    assert after == expected
    assert [repr(info_of(raw)["redelivered"]) for raw in lists.raw()] == [
        repr(whole["properties"]["delivery_info"]["redelivered"]) for whole in expected
    ]
