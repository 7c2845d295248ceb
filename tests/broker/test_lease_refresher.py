"""The keeper: leases live as long as their worker, and not longer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import redis
from batchery.worker.broker import Leases, Queue
from batchery.worker.broker.lease_refresher import LeaseRefresher

from tests.support.leases import Lists, MakeLeases, claim_all, labels, settle
from tests.support.waiting import wait_until

LEASE_S = 0.3

Keep = Callable[..., LeaseRefresher]


@pytest.fixture
def keep(queue: Queue) -> Iterator[Keep]:
    keepers: list[LeaseRefresher] = []

    def start(
        leases: Leases, hung: Callable[[], bool] = lambda: False, on_hung: Callable[[], None] = lambda: None
    ) -> LeaseRefresher:
        keepers.append(LeaseRefresher(leases, lambda: [queue], lease_s=LEASE_S, stalled=hung, on_stalled=on_hung))
        keepers[-1].start()
        return keepers[-1]

    yield start
    for keeper in keepers:
        keeper.stop()


def server_time(client: redis.Redis) -> float:
    seconds, micros = client.time()
    return float(seconds) + micros / 1e6


def test_what_is_held_stays_held_for_many_times_the_lease(
    make_leases: MakeLeases, keep: Keep, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    leases = make_leases(lease_s=LEASE_S)
    lists.put("a")
    claims = claim_all(leases, queue)
    keep(leases)
    until = server_time(redis_client) + 4 * LEASE_S
    wait_until(
        lambda: (redis_client.zscore(queue.index, claims[0].tag) or until) > until, "it was refreshed many times"
    )
    assert settle(leases, claims) == [True]


def test_a_worker_counts_as_alive_while_its_keeper_runs(
    make_leases: MakeLeases, keep: Keep, redis_client: redis.Redis, queue: Queue
) -> None:
    gone, leases = make_leases(lease_s=LEASE_S), make_leases(lease_s=LEASE_S)
    gone.refresh([queue])
    keep(leases)
    wait_until(
        lambda: redis_client.zrange(queue.workers, 0, -1) == [leases.worker.encode()], "only the living are left"
    )


def test_orphans_are_found_without_being_looked_for(
    make_leases: MakeLeases, keep: Keep, lists: Lists, queue: Queue
) -> None:
    lists.put(*range(3))
    claim_all(make_leases(lease_s=LEASE_S), queue)
    other = make_leases(lease_s=LEASE_S)
    other.claim([queue], 0, 0)
    keep(other)
    wait_until(lambda: lists.labels() == [0, 1, 2], "the orphans are back")


def test_however_many_orphans_there_are_all_are_back_at_once(
    make_leases: MakeLeases, keep: Keep, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put(*range(450))
    claim_all(make_leases(), queue)
    lists.run_out()
    other = make_leases(lease_s=LEASE_S)
    other.claim([queue], 0, 0)
    back: list[int] = []

    def count() -> bool:
        """Asked on every beat, before orphans are looked for."""
        back.append(redis_client.llen(queue.name))
        return False

    keep(other, count)
    wait_until(lambda: len(back) > 1, "its second beat")
    assert back[:2] == [0, 450]
    assert lists.labels() == list(range(450))


def test_a_hung_worker_loses_its_leases_and_is_told_once(
    make_leases: MakeLeases, keep: Keep, lists: Lists, queue: Queue
) -> None:
    leases = make_leases(lease_s=LEASE_S)
    lists.put("a")
    claims = claim_all(leases, queue)
    hung, told = threading.Event(), []
    keep(leases, hung.is_set, lambda: told.append(1))
    hung.set()
    wait_until(lambda: lists.labels() == ["a"], "the hung worker's message is back")
    hung.clear()
    wait_until(lambda: not leases.held(), "the worker has learnt of it")
    assert settle(leases, claims) == [False]
    assert told == [1]
    assert labels(claim_all(leases, queue)) == ["a"]


def test_a_cut_connection_does_not_stop_it(
    make_leases: MakeLeases, keep: Keep, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    leases = make_leases(lease_s=LEASE_S)
    lists.put("a")
    claims = claim_all(leases, queue)
    keep(leases)
    for _ in range(3):
        redis_client.client_kill_filter(_type="normal", skipme=True)
        after = server_time(redis_client) + LEASE_S
        wait_until(
            lambda: (redis_client.zscore(queue.index, claims[0].tag) or 0.0) > after,  # noqa: B023 - called here and now
            "it was refreshed after the cut",
        )
    assert lists.leased() == {claims[0].tag}


def test_stopped_it_lets_leases_run_out(make_leases: MakeLeases, keep: Keep, lists: Lists, queue: Queue) -> None:
    leases, other = make_leases(lease_s=LEASE_S), make_leases(lease_s=LEASE_S)
    lists.put("a")
    claim_all(leases, queue)
    keep(leases).stop()
    other.claim([queue], 0, 0)
    wait_until(other.sweep, "its lease has run out")
    assert lists.labels() == ["a"]
