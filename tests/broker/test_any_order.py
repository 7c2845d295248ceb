"""Whatever workers do, in whatever order: every message is in exactly one place."""

from __future__ import annotations

from typing import Any

import redis
from batchery.worker.broker import Claim, Leases, Queue, ResultRetention, Settled, Settlement
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.support.leases import Lists, bytes_of, client_of, label_of

WORKERS = 3

worker_numbers = st.integers(0, WORKERS - 1)
some = st.lists(st.integers(0, 30), max_size=8)


class Workers(RuleBasedStateMachine):
    """Three workers at two queues. What the server holds is compared with what must be, after every step."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.client = redis.Redis.from_url(url)
        self.connection = client_of(url)
        self.lists = [Lists(self.client, Queue(name)) for name in ("one", "t'wo")]
        self.sent: dict[tuple[int, int], list[int]] = {}
        self.claimed_once: set[int] = set()
        self.results: dict[int, bytes] = {}
        #: Labels of messages that are gone.
        self.acknowledged: set[Any] = set()
        self.number = 0

    @initialize()
    def start(self) -> None:
        self.client.flushdb()
        self.workers = [self.new_worker() for _ in range(WORKERS)]
        #: All that each worker ever claimed and did not finish, whether or not it is still its own.
        self.claims: list[list[Claim]] = [[] for _ in range(WORKERS)]

    def teardown(self) -> None:
        self.client.close()
        self.connection.close()

    def new_worker(self) -> Leases:
        return Leases(self.connection, lease_s=1000)

    @rule(queue=st.integers(0, 1), priority=st.sampled_from([0, 3, 9]), count=st.integers(1, 6))
    def send(self, queue: int, priority: int, count: int) -> None:
        for _ in range(count):
            self.lists[queue].put(self.number, priority=priority)
            self.sent.setdefault((queue, priority), []).append(self.number)
            self.number += 1

    @rule(
        worker=worker_numbers,
        limit=st.integers(0, 8),
        max_bytes=st.sampled_from([1, 1200, 10**6]),
        reverse=st.booleans(),
    )
    def claim(self, worker: int, limit: int, max_bytes: int, reverse: bool) -> None:
        queues = [lists.queue for lists in self.lists]
        claims = self.workers[worker].claim(queues[::-1] if reverse else queues, limit, max_bytes)
        assert len(claims) <= limit
        self.claims[worker] += claims
        self.claimed_once.update(label_of(claim.message) for claim in claims)

    @rule(worker=worker_numbers, which=some)
    def settle(self, worker: int, which: list[int]) -> None:
        chosen = self.take(worker, which)
        held = self.leased_tags()
        answer = f"by {id(self.workers[worker])}".encode()
        items = [Settlement(claim, f"result-{label_of(claim.message)}", answer) for claim in chosen]
        answered = self.workers[worker].settle(items, ResultRetention())
        assert [settled == Settled.DONE for settled in answered] == [claim.tag in held for claim in chosen]
        for claim, settled in zip(chosen, answered, strict=True):
            label = label_of(claim.message)
            if settled == Settled.DONE:
                assert label not in self.acknowledged, "acknowledged twice"
                self.acknowledged.add(label)
            assert (settled == Settled.LOST) <= (label in self.results), "a result is thrown away"
            assert (settled == Settled.LATE) <= (label not in self.results), "a result is replaced without a lease"
            if settled != Settled.LOST:
                self.results[label] = answer

    @rule(worker=worker_numbers, which=some)
    def give_back(self, worker: int, which: list[int]) -> None:
        self.workers[worker].give_back(self.take(worker, which))

    @rule(worker=worker_numbers)
    def crash(self, worker: int) -> None:
        self.workers[worker], self.claims[worker] = self.new_worker(), []

    @rule(worker=worker_numbers)
    def leave(self, worker: int) -> None:
        self.workers[worker].leave()
        self.workers[worker], self.claims[worker] = self.new_worker(), []

    @rule(which=some)
    def leases_run_out(self, which: list[int]) -> None:
        for lists in self.lists:
            workers = bytes_of(self.client.zrange(lists.queue.workers, 0, -1))
            for worker in {workers[index % len(workers)] for index in which if workers}:
                self.client.zadd(lists.queue.workers, {worker: 1.0})

    @rule(worker=worker_numbers)
    def sweep(self, worker: int) -> None:
        self.workers[worker].sweep()

    @rule(worker=worker_numbers, which=some)
    def let_go(self, worker: int, which: list[int]) -> None:
        self.workers[worker].let_go(self.take(worker, which))

    @rule(worker=worker_numbers)
    def mend(self, worker: int) -> None:
        """It finds nothing to mend, which the invariants tell."""
        self.workers[worker].mend()

    @rule(worker=worker_numbers)
    def refresh(self, worker: int) -> None:
        self.workers[worker].refresh([lists.queue for lists in self.lists])
        held = self.leased_tags()
        assert all(claim.tag in held for claim in self.workers[worker].held())

    def take(self, worker: int, which: list[int]) -> list[Claim]:
        mine = self.claims[worker]
        chosen = [mine[index] for index in dict.fromkeys(index % len(mine) for index in which)] if mine else []
        self.claims[worker] = [claim for claim in mine if claim not in chosen]
        return chosen

    def leased_tags(self) -> set[str]:
        return self.lists[0].leased() | self.lists[1].leased()

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        places: list[Any] = list(self.acknowledged)
        for lists in self.lists:
            places += lists.labels()
            for envelope in bytes_of(self.client.hvals(lists.queue.unacked)):
                places.append(label_of(envelope[1 : -len(lists.queue.envelope_end.encode())]))
        assert sorted(places) == list(range(self.number))

    @invariant()
    def whoever_holds_a_message_is_among_the_workers(self) -> None:
        self.leased_tags()

    @invariant()
    def each_result_is_the_last_of_a_holder_or_else_the_first(self) -> None:
        stored = {key: self.client.get(key) for key in self.client.scan_iter("result-*")}
        assert stored == {f"result-{label}".encode(): answer for label, answer in self.results.items()}

    @invariant()
    def those_never_claimed_stand_in_order_behind_the_rest(self) -> None:
        for (queue, priority), sent in self.sent.items():
            lists = self.lists[queue]
            key = lists.queue.lists[lists.queue.priorities.index(priority)]
            there = [label_of(raw) for raw in reversed(bytes_of(self.client.lrange(key, 0, -1)))]
            fresh = [label for label in sent if label not in self.claimed_once]
            assert there[len(there) - len(fresh) :] == fresh


def test_every_message_is_in_one_place_whatever_workers_do(redis_url: str) -> None:
    run_state_machine_as_test(
        lambda: Workers(redis_url),  # type: ignore[arg-type]  # a factory will do, says its documentation
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
