"""The lease refresher: leases live as long as their worker, and not longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
import redis
from batchery.worker.broker import Leases, Queue
from batchery.worker.broker.lease_refresher import LeaseRefresher
from batchery.worker.broker.retry import Outage

from tests.support.leases import Lists, MakeLeases, claim_all, settle
from tests.support.waiting import wait_until

LEASE_S = 0.3

Start = Callable[..., LeaseRefresher]


@pytest.fixture
def start(queue: Queue) -> Iterator[Start]:
    refreshers: list[LeaseRefresher] = []

    def start(
        leases: Leases,
        hung: Callable[[], bool] = lambda: False,
        on_hung: Callable[[], None] = lambda: None,
    ) -> LeaseRefresher:
        refresher = LeaseRefresher(leases, lambda: [queue], hung=hung, on_hung=on_hung, outage=Outage())
        refreshers.append(refresher)
        refresher.start()
        return refresher

    yield start
    for refresher in refreshers:
        refresher.stop()


def server_time(client: redis.Redis) -> float:
    seconds, micros = client.time()
    return float(seconds) + micros / 1e6


def test_a_claim_is_held_for_many_times_its_lease(
    make_leases: MakeLeases, start: Start, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    leases = make_leases(lease_s=LEASE_S)
    lists.put("a")
    claims = claim_all(leases, queue)
    start(leases)
    until = server_time(redis_client) + 4 * LEASE_S
    wait_until(
        lambda: (redis_client.zscore(queue.workers, leases.worker) or until) > until,
        "the lease was refreshed many times",
    )
    assert settle(leases, claims) == [True]


def test_a_worker_counts_as_alive_while_its_refresher_runs(
    make_leases: MakeLeases, start: Start, redis_client: redis.Redis, queue: Queue
) -> None:
    gone, leases = make_leases(lease_s=LEASE_S), make_leases(lease_s=LEASE_S)
    gone.refresh([queue])
    leases.claim([queue], 0, 0)
    start(leases)
    wait_until(
        lambda: redis_client.zrange(queue.workers, 0, -1) == [leases.worker.encode()], "only the live worker is left"
    )


def test_orphans_go_back_without_a_claim(make_leases: MakeLeases, start: Start, lists: Lists, queue: Queue) -> None:
    lists.put(*range(3))
    claim_all(make_leases(lease_s=LEASE_S), queue)
    other = make_leases(lease_s=LEASE_S)
    other.claim([queue], 0, 0)
    start(other)
    wait_until(lambda: lists.labels() == [0, 1, 2], "the orphans are back")


def test_all_orphans_go_back_in_one_turn(
    make_leases: MakeLeases, start: Start, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    lists.put(*range(450))
    claim_all(make_leases(), queue)
    lists.run_out()
    other = make_leases(lease_s=LEASE_S)
    other.claim([queue], 0, 0)
    back: list[int] = []

    def count() -> bool:
        """Asked in every turn, before orphans go back."""
        back.append(redis_client.llen(queue.name))
        return False

    start(other, count)
    wait_until(lambda: len(back) > 1, "its second turn")
    assert back[:2] == [0, 450]
    assert lists.labels() == list(range(450))


def test_a_hung_worker_is_told_once_and_keeps_the_lease_for_what_else_it_runs(
    make_leases: MakeLeases, start: Start, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    leases = make_leases(lease_s=LEASE_S)
    lists.put("a")
    claims = claim_all(leases, queue)
    hung, told = threading.Event(), []
    start(leases, hung.is_set, lambda: told.append(1))
    hung.set()
    wait_until(lambda: told, "it is told")
    until = server_time(redis_client) + 4 * LEASE_S
    wait_until(lambda: (redis_client.zscore(queue.workers, leases.worker) or 0.0) > until, "its lease is refreshed")
    assert settle(leases, claims) == [True]
    assert told == [1]


def test_leases_are_refreshed_after_a_cut_connection(
    make_leases: MakeLeases, start: Start, redis_client: redis.Redis, lists: Lists, queue: Queue
) -> None:
    leases = make_leases(lease_s=LEASE_S)
    lists.put("a")
    claims = claim_all(leases, queue)
    start(leases)
    for _ in range(3):
        redis_client.client_kill_filter(_type="normal", skipme=True)
        after = server_time(redis_client) + LEASE_S
        wait_until(
            lambda: (redis_client.zscore(queue.workers, leases.worker) or 0.0) > after,  # noqa: B023 - called here and now
            "the lease was refreshed after the cut",
        )
    assert lists.leased() == {claims[0].tag}


def test_leases_run_out_once_the_refresher_is_stopped(
    make_leases: MakeLeases, start: Start, lists: Lists, queue: Queue
) -> None:
    leases, other = make_leases(lease_s=LEASE_S), make_leases(lease_s=LEASE_S)
    lists.put("a")
    claim_all(leases, queue)
    start(leases).stop()
    other.claim([queue], 0, 0)
    wait_until(other.sweep, "its lease has run out")
    assert lists.labels() == ["a"]


def test_a_refresher_whose_server_is_away_pauses_between_its_tries(
    make_leases: MakeLeases, start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, tried = make_leases("redis://127.0.0.1:1/0", lease_s=LEASE_S), threading.Semaphore(0)
    refresh = leases.refresh

    def note_try(queues: Iterable[Queue]) -> list[Queue]:
        tried.release()
        return refresh(queues)

    monkeypatch.setattr(leases, "refresh", note_try)
    begun = time.monotonic()
    start(leases)
    for _ in range(4):
        assert tried.acquire(timeout=10)
    assert time.monotonic() - begun >= 3 * LEASE_S / 3
    assert len(caplog.messages) <= 4


def test_an_acknowledgement_is_sent_at_once(make_leases: MakeLeases, start: Start, lists: Lists, queue: Queue) -> None:
    leases = make_leases(lease_s=3000)
    start(leases)
    for label in range(20):
        lists.put(label)
        leases.acknowledge(claim_all(leases, queue)[0])
        wait_until(lambda: not leases.held(), "the message is acknowledged", 1)
    assert lists.leased() == set()


def test_an_acknowledgement_that_failed_is_sent_in_the_next_turn(
    make_leases: MakeLeases, start: Start, lists: Lists, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = make_leases(lease_s=LEASE_S)
    flush, failed = leases.flush, threading.Event()

    def fail_once() -> None:
        if leases.held() and not failed.is_set():
            failed.set()
            raise redis.ConnectionError("the server is away")
        flush()

    monkeypatch.setattr(leases, "flush", fail_once)
    lists.put("a", "b")
    acknowledged, given_back = claim_all(leases, queue)
    start(leases)
    leases.acknowledge(acknowledged)
    leases.give_back_soon(given_back)
    wait_until(lambda: lists.labels() == ["b"] and not lists.leased(), "both are sent")
    assert failed.is_set()
