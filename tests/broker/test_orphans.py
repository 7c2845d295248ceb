"""Who gives back what its worker left, in which steps, and what is found that nobody holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis
from batchery.worker import tuning
from batchery.worker.broker import Leases, Queue
from batchery.worker.broker.lua import Scripts

from tests.support.leases import ANY_SIZE, Lists, MakeLeases, claim_all, labels, settle


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The name of each script that runs, and how many keys and arguments it gets."""
    seen: list[tuple[str, int]] = []
    run = Scripts._run

    def spy(self: Scripts, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        seen.append((name, len(keys) + len(args)))
        return run(self, name, keys, args)

    monkeypatch.setattr(Scripts, "_run", spy)
    return seen


def hold(leases: Leases, lists: Lists, count: int) -> None:
    lists.put(*range(count))
    leases.claim([lists.queue], count, ANY_SIZE)


def test_however_much_is_held_no_script_gets_more_than_a_few_hundred_messages(
    make_leases: MakeLeases, lists: Lists, queue: Queue, sizes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script keeps everybody else from the server while it runs."""
    monkeypatch.setattr(tuning, "SCAN_COUNT", 100)
    count, overhead = 2500, 20
    doomed, heir = make_leases(), make_leases()
    hold(doomed, lists, count)
    del sizes[:]
    doomed.refresh([queue])
    assert sizes == [("refresh", 4)], "it costs the same whatever is held"
    lists.run_out(doomed)
    heir.claim([queue], 0, 0)
    assert heir.sweep() == count
    hold(heir, lists, 0)
    heir.claim([queue], count, ANY_SIZE)
    heir.leave()
    lists.run_out()
    assert max(size for _, size in sizes) <= tuning.SWEEP_MAX_JOBS + overhead
    assert lists.labels() == list(range(count))
    assert lists.leased() == set()


def test_a_sweep_gives_back_a_part_of_very_many_and_the_next_one_goes_on(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that sweeps has to refresh its own lease in between."""
    monkeypatch.setattr(tuning, "SWEEP_MOST", 3)
    doomed, heir = make_leases(), make_leases()
    hold(doomed, lists, 7)
    lists.run_out(doomed)
    heir.claim([queue], 0, 0)
    assert [heir.sweep() for _ in range(4)] == [3, 3, 1, 0]
    assert lists.labels() == [*range(7)]
    assert redis_client.zrange(queue.workers, 0, -1) == [heir.worker.encode()]


def test_a_late_worker_looks_for_everything_that_it_holds_in_small_steps(
    make_leases: MakeLeases, lists: Lists, queue: Queue, sizes: list[tuple[str, int]]
) -> None:
    late = make_leases()
    hold(late, lists, 2500)
    lists.run_out()
    del sizes[:]
    late.refresh([queue])
    assert len(late.held()) == 2500
    assert sizes == [("refresh", 4)]


def after_giving_back(monkeypatch: pytest.MonkeyPatch, times: int, action: Callable[[], object]) -> None:
    """Call `action` when so many pieces were given back, within the sweep that gives them back."""
    run, given = Scripts._run, []

    def run_and_act(self: Scripts, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        answer = run(self, name, keys, args)
        given.append(name)
        if given.count("give_back") == times and name == "give_back":
            action()
        return answer

    monkeypatch.setattr(Scripts, "_run", run_and_act)


def test_a_sweep_stops_as_soon_as_the_late_worker_is_back(
    make_leases: MakeLeases, lists: Lists, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SWEEP_MAX_JOBS", 2)
    late, other = make_leases(), make_leases()
    hold(late, lists, 6)
    claims = late.held()
    other.claim([queue], 0, 0)
    lists.run_out(late)
    after_giving_back(monkeypatch, 1, lambda: late.refresh([queue]))
    assert other.sweep() == 2
    assert lists.labels() == [4, 5], "the newest go back first"
    assert labels(late.held()) == [0, 1, 2, 3]
    assert settle(late, claims) == [True, True, True, True, False, False]


def test_two_sweeps_at_once_keep_the_order(
    make_leases: MakeLeases, lists: Lists, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SWEEP_MAX_JOBS", 2)
    doomed, one, other = make_leases(), make_leases(), make_leases()
    hold(doomed, lists, 9)
    for worker in (one, other):
        worker.claim([queue], 0, 0)
    lists.run_out(doomed)
    after_giving_back(monkeypatch, 2, other.sweep)
    one.sweep()
    assert lists.labels() == list(range(9))
    assert lists.leased() == set()


def test_a_server_that_cannot_list_tags_alone_is_asked_for_all_of_them(
    make_leases: MakeLeases, redis_client: redis.Redis, redis_url: str, lists: Lists, queue: Queue
) -> None:
    """HSCAN has NOVALUES since Redis 7.4 and Valkey 8.0. Here HSCAN is forbidden instead, which looks the same."""
    redis_client.acl_setuser(
        "old", enabled=True, passwords="+secret", keys="*", channels="*", categories=["+@all"], commands=["-hscan"]
    )
    try:
        doomed, alive, heir = make_leases(), make_leases(), make_leases(username="old", password="secret")
        lists.put(*range(4))
        doomed.claim([queue], 2, ANY_SIZE)
        kept = alive.claim([queue], 2, ANY_SIZE)
        heir.claim([queue], 0, 0)
        lists.run_out(doomed)
        heir.sweep()
        assert lists.leased() == {claim.tag for claim in kept}
        heir.mend()
        assert lists.leased() == {claim.tag for claim in kept}
    finally:
        redis_client.acl_deluser("old")


# -- Let go, and strays ------------------------------------------------------------------------------------------------


def test_what_was_let_go_goes_back_after_a_lease_and_not_before(
    make_leases: MakeLeases, lists: Lists, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, now = make_leases(lease_s=30), 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lists.put("a", "b")
    claims = claim_all(leases, queue)
    leases.let_go(claims[:1])
    assert (labels(leases.held()), leases.holds(claims[0])) == (["b"], False)
    leases.flush()
    leases.mend()
    assert lists.labels() == []
    now += 30
    leases.flush()
    assert lists.labels() == ["a"]
    leases.let_go(claims[1:])
    leases.leave()
    assert lists.labels() == ["b", "a"]


def test_a_message_that_the_server_holds_for_nobody_goes_back_with_a_line_in_the_log(
    leases: Leases, lists: Lists, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    lists.put(*range(3))
    claims = claim_all(leases, queue)
    leases._forget(claims[1:2])
    leases.mend()
    assert lists.labels() == [1]
    assert lists.leased() == {claims[0].tag, claims[2].tag}
    assert "1 messages of work were held for nobody" in caplog.text


def test_messages_of_a_worker_that_nobody_knows_are_found(
    make_leases: MakeLeases, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    """As when somebody has deleted the key of the workers."""
    doomed, other = make_leases(), make_leases()
    lists.put(*range(3))
    claim_all(doomed, queue)
    redis_client.delete(queue.workers)
    other.claim([queue], 0, 0)
    assert other.sweep() == 0
    other.mend()
    assert other.sweep() == 0, "it may be alive, and gets one lease"
    lists.run_out()
    assert other.sweep() == 3
    assert lists.labels() == [0, 1, 2]
