"""Dead letters: messages of jobs that were given up, kept within bounds, requeued or dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from batchery.worker.broker import Claim, DeadLetter, DeadLetters, Leases, LetterLimits, Queue

from tests.support.leases import Lists, MakeLeases, claim_all, label_of, message

LIMITS = LetterLimits(letters=100, bytes=10**6, age_s=1000)


@pytest.fixture
def letters(redis_client: redis.Redis) -> DeadLetters:
    return DeadLetters(redis_client, Queue)


def bury(leases: Leases, claim: Claim, limits: LetterLimits = LIMITS, **fields: Any) -> bool:
    letter = DeadLetter(id=f"id-{label_of(claim.message)}", task="t", reason="It was time.", **fields)
    return leases.scripts.bury(claim, letter, limits)


def bury_all(leases: Leases, queue: Queue, limits: LetterLimits = LIMITS) -> list[Claim]:
    claims = claim_all(leases, queue)
    assert all(bury(leases, claim, limits) for claim in claims)
    return claims


def ids(letters: DeadLetters, queue: str = "work") -> list[str]:
    return [letter.id for letter in letters.letters(queue)]


def counted_bytes(client: redis.Redis, queue: Queue) -> tuple[int, int]:
    """The bytes of all letters: as they are counted, and as they are."""
    known: dict[bytes, bytes] = client.hgetall(queue.dead)  # type: ignore[assignment]
    counted = int(known.pop(b"", b"0"))
    messages: list[bytes] = client.hvals(queue.dead_messages)  # type: ignore[assignment]
    return counted, sum(map(len, [*known.values(), *messages]))


def test_a_letter_tells_all_but_the_message_which_is_kept_to_the_byte(
    leases: Leases, letters: DeadLetters, lists: Lists, queue: Queue
) -> None:
    lists.put("a", priority=6)
    raw = lists.raw()
    [claim] = claim_all(leases, queue)
    assert bury(leases, claim, worker="gpu@here", lost=4, deaths=3)
    [letter] = letters.letters("work")
    told = (letter.id, letter.queue, letter.task, letter.worker, letter.lost, letter.deaths, letter.priority)
    assert told == ("id-a", "work", "t", "gpu@here", 4, 3, 6)
    assert abs(letter.at - leases.server_time) < 10
    assert letters.message(letter) == raw[0]
    assert lists.leased() == {claim.tag}, "the caller is not answered yet, so the message stays claimed"


def test_only_the_holder_of_the_lease_gives_up(
    make_leases: MakeLeases, letters: DeadLetters, lists: Lists, queue: Queue
) -> None:
    slow, other = make_leases(), make_leases()
    lists.put("a")
    [claim] = claim_all(slow, queue)
    lists.run_out()
    other.claim([queue], 0, 0)
    other.sweep()
    assert not bury(slow, claim)
    assert ids(letters) == []


def test_a_job_that_is_given_up_twice_is_one_letter(
    leases: Leases, letters: DeadLetters, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("a")
    [claim] = bury_all(leases, queue)
    bury(leases, claim, deaths=7)
    [letter] = letters.letters("work")
    assert letter.deaths == 7
    counted, real = counted_bytes(redis_client, queue)
    assert counted == real > 0


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (LIMITS._replace(letters=2), ["id-3", "id-4"]),
        (LIMITS._replace(bytes=1200), ["id-3", "id-4"]),
        (LIMITS._replace(bytes=1), ["id-4"]),
    ],
)
def test_the_oldest_letters_go_when_there_are_too_many_or_too_large_ones(
    leases: Leases,
    letters: DeadLetters,
    redis_client: redis.Redis,
    lists: Lists,
    queue: Queue,
    limits: LetterLimits,
    kept: list[str],
) -> None:
    lists.put(*range(5))
    bury_all(leases, queue, limits)
    assert ids(letters) == kept
    counted, real = counted_bytes(redis_client, queue)
    assert counted == real
    assert 401 < counted / len(kept) < 600, "1200 bytes are two letters"


def test_letters_that_are_too_old_go_even_if_no_new_one_comes(
    leases: Leases, letters: DeadLetters, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("old", "new")
    old, new = claim_all(leases, queue)
    bury(leases, old)
    redis_client.zadd(queue.dead_index, {"id-old": leases.server_time - 1001})
    bury(leases, new)
    assert ids(letters) == ["id-new"]
    for key in (queue.dead, queue.dead_messages, queue.dead_index):
        assert 0 < int(str(redis_client.ttl(key))) <= 1000


def test_a_requeued_call_is_as_it_was_sent_and_last_in_line(
    leases: Leases, letters: DeadLetters, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    sent = message("a", priority=3)
    lost = message("a", priority=3, redelivered=True, batchery_lost=[3, 3, 2])
    redis_client.lpush(queue.lists[1], lost)
    claims = bury_all(leases, queue)
    leases.acknowledge(claims[0])
    leases.flush()
    lists.put("b", priority=3)
    [letter] = letters.letters("work")
    assert letters.requeue(letter)
    assert lists.labels() == ["b", "a"]
    assert json.loads(lists.raw()[1]) == json.loads(sent)
    assert ids(letters) == []
    assert counted_bytes(redis_client, queue) == (0, 0)
    assert not letters.requeue(letter), "it is gone"


@pytest.mark.parametrize("raw", [b"\x00\xff no message", b"[1]", b'{"properties": null}'])
def test_what_is_no_message_is_requeued_to_the_byte(
    leases: Leases, letters: DeadLetters, redis_client: redis.Redis, lists: Lists, queue: Queue, raw: bytes
) -> None:
    redis_client.lpush("work", raw)
    [claim] = claim_all(leases, queue)
    leases.scripts.bury(claim, DeadLetter(id=claim.tag, reason="unreadable"), LIMITS)
    leases.acknowledge(claim)
    leases.flush()
    assert letters.requeue(letters.letters("work")[0])
    assert lists.raw() == [raw]


def test_a_letter_that_is_dropped_is_gone(
    leases: Leases, letters: DeadLetters, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("a", "b")
    bury_all(leases, queue)
    assert letters.drop(letters.letters("work")[0])
    assert ids(letters) == ["id-b"]
    counted, real = counted_bytes(redis_client, queue)
    assert counted == real
    assert lists.labels() == []


@pytest.mark.parametrize("prefix", ["", "{site}*:"])
def test_every_queue_with_letters_is_found_whatever_it_is_called(
    make_leases: MakeLeases, redis_client: redis.Redis, prefix: str
) -> None:
    names = ["plain", "{braces}", "a:b", "ünï cödé", "[x]*?\\"]
    leases = make_leases()
    for name in names:
        Lists(redis_client, Queue(name, prefix)).put("a")
        bury_all(leases, Queue(name, prefix))
    Lists(redis_client, Queue("another", "site")).put("a")
    bury_all(leases, Queue("another", "site"))
    letters = DeadLetters(redis_client, lambda name: Queue(name, prefix))
    assert sorted(letters.queues()) == sorted(names)
    assert all(ids(letters, name) == ["id-a"] for name in names)


def test_letters_are_kept_on_a_full_server(
    leases: Leases, letters: DeadLetters, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put("a")
    claims = claim_all(leases, queue)
    try:
        redis_client.config_set("maxmemory", 1)
        assert bury(leases, claims[0])
        assert leases.scripts.may_run_suspect(claims[0])
    finally:
        redis_client.config_set("maxmemory", 0)
    assert ids(letters) == ["id-a"]


# -- One suspect at a time ---------------------------------------------------------------------------------------------


def test_one_suspect_of_a_queue_runs_at_a_time_in_all_workers(
    make_leases: MakeLeases, lists: Lists, queue: Queue
) -> None:
    one, other = make_leases(), make_leases()
    lists.put(*range(3))
    [first] = one.claim([queue], 1, 10**9)
    second, third = claim_all(other, queue)
    assert one.scripts.may_run_suspect(first)
    assert one.scripts.may_run_suspect(first), "asking again does no harm"
    assert not other.scripts.may_run_suspect(second)
    one.acknowledge(first)
    one.flush()
    assert other.scripts.may_run_suspect(second)
    assert not other.scripts.may_run_suspect(third)
    other.give_back([second])
    assert other.scripts.may_run_suspect(third)


def test_a_worker_that_dies_with_its_suspect_keeps_the_next_one_waiting_for_its_lease_only(
    make_leases: MakeLeases, lists: Lists, queue: Queue
) -> None:
    doomed, other = make_leases(), make_leases()
    lists.put("a", "b")
    [deadly] = doomed.claim([queue], 1, 10**9)
    [waits] = claim_all(other, queue)
    assert doomed.scripts.may_run_suspect(deadly)
    assert not other.scripts.may_run_suspect(waits)
    lists.run_out(doomed)
    assert other.sweep() == 1
    assert other.scripts.may_run_suspect(waits)
