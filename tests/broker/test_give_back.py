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


ODD_MESSAGES: dict[str, bytes] = {
    "kombu's": message("a"),
    "compact": json.dumps(json.loads(message("a")), separators=(",", ":")).encode(),
    "spread over lines": json.dumps(json.loads(message("a")), indent=1).encode(),
    "no delivery_info": b'{"body": "", "properties": {}}',
    "no delivery_info among properties": b'{"properties":{"priority":3}}',
    "a delivery_info that is null": b'{"properties": {"delivery_info": null}}',
    "an empty delivery_info": b'{"properties": {"delivery_info": {}}}',
    "spaces in an empty delivery_info": b'{"properties": {"delivery_info": {  } } }',
    "properties first": b'{"properties" : {"delivery_info" : {"redelivered" : false , "x" : [1, {}]}}, "headers": {}}',
    "redelivered before": message("a", redelivered=True),
    "said not to be": message("a", redelivered=False),
    "said in an odd way": message("a", redelivered={"a": "}"}),
    "escaped names": b'{"pr\\u006fperties": {"delivery_inf\\u006f": {"redelivere\\u0064": 7}}}',
    "names twice": b'{"properties": {"delivery_info": {"redelivered": 1}, "delivery_info": {"redelivered": 2}}}',
    "a queue with braces": message("a", queue='{work}:x y\\"é\u2028'),
    "a header of that name": (
        b'{"headers": {"delivery_info": {"x": 1}}, "properties": {"delivery_info": {"exchange": ""}}}'
    ),
    "a header that says so": (b'{"headers": {"redelivered": true}, "properties": {"delivery_info": {"exchange": ""}}}'),
    "a delivery_info in a list behind": b'{"properties": {"delivery_info": {}, "x": [{"delivery_info": {"a": 1}}]}}',
    "odd numbers": b'{"headers": {"x": [1e400, -0.0, 123456789012345678901, {}, []]}, "properties": {}}',
    "the words in a text": json.dumps(
        {
            "headers": {"x": '"delivery_info": {"redelivered": true'},
            "properties": {"delivery_info": {"exchange": ""}},
        }
    ).encode(),
}


def delivered(raw: bytes) -> tuple[Any, dict[str, Any]]:
    """What a message says of its deliveries, and all else that it says."""
    whole = json.loads(raw)
    info = whole["properties"].pop("delivery_info", None) or {}
    said = info.pop("redelivered", None), info.pop("batchery_lost", None)
    return said, {**whole, "delivery_info": info}


@pytest.mark.parametrize("raw", ODD_MESSAGES.values(), ids=ODD_MESSAGES)
def test_an_orphan_says_how_often_it_was_lost_whatever_it_looks_like(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue, raw: bytes
) -> None:
    redis_client.lpush("work", raw)
    orphaned(make_leases, lists).sweep()
    orphaned(make_leases, lists, running=[0]).sweep()
    (after,) = lists.raw()
    said, rest = delivered(after)
    assert said == (True, [2, 1, 1])
    assert rest == delivered(raw)[1]


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


def info_of(raw: bytes) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(raw)["properties"]["delivery_info"]
    return info


def lost(raw: bytes) -> Any:
    """How often a message was lost: at all, while user code worked on it, while it worked on nothing else."""
    return json.loads(raw)["properties"]["delivery_info"].get("batchery_lost")


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
    assert [info_of(raw).get("redelivered") for raw in lists.raw()] == [None, None, True, True, True, True]
    assert [lost(raw) for raw in lists.raw()][2:] == [[0, 0, 0]] * 4, "a task's own decision is no lost delivery"
    assert labels(leases.held()) == ["kept"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *((odd, [1, 1, 1]) for odd in (None, "x", 7, [], [1], [1, 2, "3"], [1, -2, 3], [1.5, 0, 0], {"a": [1, 2, 3]})),
        ([1, 0, 0], [2, 1, 1]),
        ([20, 3, 1], [21, 4, 2]),
        ([10**30, 0, 0], [10**6 + 1, 1, 1]),
    ],
    ids=repr,
)
def test_counts_go_on_from_those_of_before_and_odd_ones_begin_anew(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, before: Any, after: list[int]
) -> None:
    redis_client.lpush("work", message("a", batchery_lost=before))
    orphaned(make_leases, lists, running=[0]).sweep()
    assert [lost(raw) for raw in lists.raw()] == [after]


def test_only_an_orphan_on_which_user_code_worked_counts_a_death(
    make_leases: MakeLeases, lists: Lists, queue: Queue
) -> None:
    """And only if it worked on nothing else, this is evidence against the one orphan."""
    lists.put(*range(4))
    orphaned(make_leases, lists, running=[0, 2]).sweep()
    assert [lost(raw) for raw in lists.raw()] == [[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    lists.client.delete(queue.workers)  # so that no other worker has a share
    orphaned(make_leases, lists, running=[2]).sweep()
    assert [lost(raw) for raw in lists.raw()] == [[2, 1, 0], [2, 0, 0], [2, 2, 1], [2, 0, 0]]


@pytest.mark.parametrize("prefix", ["", "{site}:", "a b "])
@pytest.mark.parametrize(
    "name", ["{work}", "a:b", "a b", "ünï cödé", 'quo"te', "back\\slash", "[x]*?", "work\x06\x163"]
)
def test_deaths_are_counted_whatever_the_queue_is_called(
    make_leases: MakeLeases, redis_client: redis.Redis, name: str, prefix: str
) -> None:
    lists = Lists(redis_client, Queue(name, prefix))
    lists.put("a")
    lists.put("b", priority=6)
    orphaned(make_leases, lists, running=[0]).sweep()
    assert [(label_of(raw), lost(raw)) for raw in lists.raw()] == [("a", [1, 1, 1]), ("b", [1, 0, 0])]


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
    assert {label_of(raw): lost(raw)[1] for raw in lists.raw()} == {0: 1, 1: 0, 2: 0, 3: 1}


#: Texts that look like what the script looks for.
lures = st.sampled_from(
    ['"redelivered": 7', 'x"redelivered', '\\"redelivered": 7', '"delivery_info": {', ", 7", "true", "}", "]", "\\"]
)
texts = st.text(st.characters(codec="utf-8"), max_size=8) | lures
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
names = texts | st.sampled_from(["redelivered", "delivery_info", "properties"])
counts = st.none() | st.lists(st.integers(0, 10**6 - 1), min_size=3, max_size=3)
orphans = st.fixed_dictionaries(
    {
        "before": st.dictionaries(names, values, max_size=3),
        "properties": st.dictionaries(names, values, max_size=3),
        "info": st.none() | st.dictionaries(names, values, max_size=4),
        "counts": counts,
        "behind": st.dictionaries(texts, values, max_size=2),
        "separators": st.sampled_from([None, (",", ":"), (" ,\n", " :\t")]),
        "ascii": st.booleans(),
        "ran": st.booleans(),
    }
)


def written(orphan: dict[str, Any]) -> bytes:
    """A message with such properties, somewhere among its members."""
    info, properties = orphan["info"], dict(orphan["properties"])
    if info is not None:
        properties["delivery_info"] = info if orphan["counts"] is None else {**info, "batchery_lost": orphan["counts"]}
    whole = {**orphan["before"], "properties": properties, **orphan["behind"]}
    return json.dumps(whole, separators=orphan["separators"], ensure_ascii=orphan["ascii"]).encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=150)
@given(st.lists(orphans, min_size=1, max_size=6))
def test_whatever_a_message_holds_only_its_deliveries_change(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, some: list[dict[str, Any]]
) -> None:
    """Python's own JSON is the oracle."""
    redis_client.flushdb()
    raws = list(map(written, some))
    for raw in raws:
        redis_client.lpush("work", raw)
    running = [place for place, orphan in enumerate(some) if orphan["ran"]]
    assert orphaned(make_leases, lists, running).sweep() == len(some)
    expected = []
    for raw, orphan in zip(raws, some, strict=True):
        whole = json.loads(raw)
        if isinstance(whole["properties"], dict):  # a name behind may have replaced it
            info = whole["properties"].get("delivery_info")
            info = info if isinstance(info, dict) else {}
            old = orphan["counts"] if info.get("batchery_lost") == orphan["counts"] and orphan["counts"] else [0, 0, 0]
            more = [1, orphan["ran"], orphan["ran"] and len(running) == 1]
            new = [before + after for before, after in zip(old, more, strict=True)]
            whole["properties"]["delivery_info"] = {**info, "redelivered": True, "batchery_lost": new}
        expected.append(whole)
    assert [json.loads(raw) for raw in lists.raw()] == expected
