"""Parts of chords are settled in bulk, and are what Celery's own script would have added; Celery calls back, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from batchery.batchers import Job, Outcome
from batchery.producer import private
from batchery.worker.broker import Claim, Leases, Queue, ResultRetention, Settled, Settlement
from batchery.worker.consumer.fast.store import ResultStore
from batchery.worker.consumer.wire.decode import FastCall, decode
from batchery.worker.consumer.wire.request import FastRequest, context_of
from celery import Celery, chord
from hypothesis import given
from hypothesis import strategies as st

from tests.support.callers import disconnect
from tests.support.leases import ALL, ANY_SIZE, Lists, bytes_of, client_of, label_of
from tests.support.messages import ACCEPT, stock

# Celery's own way to store a result.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

QUEUE = Queue("celery")
GROUP = "celery-taskset-meta-"


def _nothing(*_: Any) -> None: ...


class House:
    """Workers of ours, a stock worker and callers, on one server; nothing runs by itself."""

    def __init__(self, url: str, client: redis.Redis, **conf: Any) -> None:
        self.url = url
        self.client = client
        self.workers: list[Worker] = []
        self.app = Celery(broker=url, backend=url, set_as_current=False)
        self.app.conf.update(conf)
        self.app.task(_nothing, name="t", shared=False)
        self.app.finalize()
        self.callback = self.app.signature("callback", queue="callbacks")

    def call(self, count: int, **options: Any) -> str:
        """Call a chord whose header has `count` parts, 0, 1, 2...; return its group's id."""
        header = [self.app.tasks["t"].s(index).set(**options) for index in range(count)]
        return str(chord(header, app=self.app)(self.callback).parent.id)

    def worker(self) -> Worker:
        self.workers.append(Worker(self))
        return self.workers[-1]

    def callbacks(self) -> list[Any]:
        """What each callback was sent."""
        return [label_of(raw) for raw in bytes_of(self.client.lrange("callbacks", 0, -1))]

    def chord(self, group: str) -> dict[str, Any]:
        """What is kept of a chord, and for how long."""
        keys = sorted(key.decode() for key in self.client.scan_iter(f"*{GROUP}{group}*"))
        kept: dict[str, Any] = {}
        for key in keys:
            kind = self.client.type(key)
            value: Any
            read = self.app.backend.decode
            if kind == b"zset":
                value = [read(part) for part in bytes_of(self.client.zrange(key, 0, -1))]
                value += [self.client.zscore(key, part) for part in bytes_of(self.client.zrange(key, 0, -1))]
            elif kind == b"list":
                value = [read(part) for part in self.client.lrange(key, 0, -1)]
            elif kind == b"set":
                value = sorted(bytes_of(self.client.smembers(key)), key=lambda member: member[-1])
            else:
                value = self.client.get(key)
            kept[key] = (value, round(self.client.ttl(key), -2))
        return kept


class Worker:
    """One worker: claims, and settles as it is told."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._client = client_of(house.url)
        self.leases = Leases(self._client, lease_s=30)
        self.store = ResultStore(house.app, self.leases, self._client)
        backend = house.app.backend
        assert private.keeps_chord_parts_as_known(backend), "this Celery's chords are not those that our script knows"

    def close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()

    def claim(self) -> list[Outcome]:
        """Claim all there is; return an outcome for each: the argument, in a list."""
        return [self.outcome(claim) for claim in self.leases.claim([QUEUE], ALL, ANY_SIZE)]

    def outcome(self, claim: Claim) -> Outcome:
        call = decode(claim.message, ACCEPT)
        assert isinstance(call, FastCall)
        task = self.house.app.tasks[call.headers.task]
        reply = FastRequest(claim, call.headers, task, self._request, call.headers.id, task.name, call.in_chord)
        job = Job(call.headers.id, task.name, call.args, call.kwargs, reply, 0.0, claim.seq)
        return Outcome(job, value=[*call.args])

    def settle(self, outcomes: list[Outcome]) -> list[Settled]:
        return self.store.settle(outcomes)

    def tell_celery(self, outcome: Outcome, *, dies: bool = False) -> None:
        """Store as Celery's own worker does, which counts the chord and calls back; acknowledge, unless it `dies`."""
        reply = outcome.job.reply
        self.house.app.backend.mark_as_done(outcome.job.id, outcome.value, context_of(reply))
        if not dies:
            self.leases.settle([Settlement(reply.claim)], ResultRetention())

    def finish(self, outcomes: list[Outcome]) -> None:
        """Settle in bulk, and let Celery do what is left to it."""
        for outcome, answer in zip(outcomes, self.settle(outcomes), strict=True):
            if answer == Settled.NEEDS_CELERY:
                self.tell_celery(outcome)

    def _request(self, claim: Claim) -> Any:
        return stock(self.house.app, claim.message)


@contextmanager
def house_at(url: str, **conf: Any) -> Iterator[House]:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        house = House(url, client, **conf)
        try:
            yield house
        finally:
            disconnect(house.app)
            for worker in house.workers:
                worker.close()
            client.flushdb()


@pytest.fixture
def house(redis_url: str) -> Iterator[House]:
    with house_at(redis_url) as house:
        yield house


def test_all_parts_but_the_last_are_settled_in_bulk_and_celery_settles_the_last(house: House) -> None:
    group = house.call(5)
    worker = house.worker()
    parts = worker.claim()
    assert worker.settle(parts) == [Settled.DONE] * 4 + [Settled.NEEDS_CELERY]
    assert [each.job.args for each in parts if worker.leases.holds(each.job.reply.claim)] == [[4]]
    assert house.callbacks() == []
    worker.tell_celery(parts[-1])
    assert house.callbacks() == [[[index] for index in range(5)]]
    assert [house.app.AsyncResult(part.job.id).get(timeout=5) for part in parts] == [[index] for index in range(5)]
    assert list(house.chord(group)) == [f"{GROUP}{group}.c"]
    assert house.client.hlen(QUEUE.unacked) == 0


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"result_expires": 500, "result_chord_expires": 300},
        {"result_expires": 0},
        {"result_backend_transport_options": {"result_chord_ordered": False}},
        {"result_compression": "gzip"},
        {"result_backend_transport_options": {"global_keyprefix": "mine-"}},
    ],
    ids=str,
)
def test_a_chord_is_kept_as_celery_keeps_it(redis_url: str, conf: dict[str, Any]) -> None:
    kept = []
    for way in ("ours", "celerys"):
        with house_at(redis_url, **conf) as house:
            group = house.call(4)
            worker = house.worker()
            parts = worker.claim()[:3]
            if way == "ours":
                assert worker.settle(parts) == [Settled.DONE] * 3
            else:
                for part in parts:
                    worker.tell_celery(part)
            ids = {part.job.id: str(place) for place, part in enumerate(parts)}
            state = repr(house.chord(group)).replace(group, "group")
            for task_id, place in ids.items():
                state = state.replace(task_id, place)
            kept.append(state)
    assert kept[0] == kept[1]


def test_a_part_that_arrives_before_the_chords_size_is_known_completes_nothing(house: House) -> None:
    worker = house.worker()
    answers: list[Settled] = []

    def header() -> Iterator[Any]:
        for index in range(6):
            yield house.app.tasks["t"].s(index)
            answers.extend(worker.settle(worker.claim()))

    chord(header(), app=house.app)(house.callback)
    assert answers == [Settled.DONE] * len(answers)
    assert len(answers) >= 3
    worker.finish(worker.claim())
    assert house.callbacks() == [[[index] for index in range(6)]]


def test_a_part_delivered_again_after_its_chord_is_complete_changes_nothing(house: House) -> None:
    group = house.call(3)
    worker = house.worker()
    parts = worker.claim()
    worker.finish(parts)
    before = house.chord(group)
    assert len(house.callbacks()) == 1
    house.client.delete("callbacks")
    house.client.lpush("celery", parts[0].job.reply.claim.message)
    assert worker.settle(worker.claim()) == [Settled.DONE]
    assert house.chord(group).keys() == before.keys() == {f"{GROUP}{group}.c"}
    assert house.callbacks() == []


def test_ignored_results_still_count_as_parts(house: House) -> None:
    house.call(3, ignore_result=True)
    worker = house.worker()
    worker.finish(worker.claim())
    assert house.callbacks() == [[[0], [1], [2]]]
    assert not list(house.client.scan_iter("celery-task-meta-*"))


def test_a_chord_without_a_group_is_none(house: House) -> None:
    house.app.tasks["t"].apply_async((1,), chord=house.callback)
    worker = house.worker()
    parts = worker.claim()
    assert parts[0].job.reply.in_chord
    assert worker.settle(parts) == [Settled.DONE]


def test_chords_that_are_settled_together_keep_apart(house: House) -> None:
    counts = [1, 2, 3, 40]
    for count in counts:
        house.call(count)
    worker = house.worker()
    parts = worker.claim()
    assert worker.settle(parts).count(Settled.NEEDS_CELERY) == len(counts)
    worker.finish([part for part in parts if worker.leases.holds(part.job.reply.claim)])
    assert sorted(map(len, house.callbacks())) == counts


def test_results_in_another_database_have_their_chords_there(many_databases: str) -> None:
    with house_at(many_databases) as house:
        house.app.conf.result_backend = many_databases.rpartition("/")[0] + "/5"
        house.call(3)
        worker = house.worker()
        parts = worker.claim()
        assert worker.settle(parts) == [Settled.DONE, Settled.DONE, Settled.NEEDS_CELERY]
        worker.tell_celery(parts[-1])
        assert house.callbacks() == [[[0], [1], [2]]]
        assert not list(house.client.scan_iter("celery-task*"))


WAYS = ["in bulk", "in bulk, and dies before it tells Celery", "Celery's", "Celery's, and dies before it acknowledges"]


@given(
    lots=st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.sampled_from(WAYS)), max_size=6),
    workers=st.integers(1, 3),
)
def test_a_chord_calls_back_once_whichever_workers_settle_or_die(
    server: str, lots: list[tuple[set[int], str]], workers: int
) -> None:
    with house_at(server) as house:
        house.call(6)
        outcomes = {part.job.args[0]: (worker, part) for worker in crew(house, workers) for part in worker.claim()}
        for wanted, way in lots:
            lot = [outcomes.pop(index) for index in sorted(wanted & outcomes.keys())]
            for worker in {worker for worker, _ in lot}:
                parts = [part for whose, part in lot if whose is worker]
                if way == "in bulk":
                    worker.finish(parts)
                elif way.startswith("in bulk"):
                    worker.settle(parts)
                else:
                    for part in parts:
                        worker.tell_celery(part, dies=way.endswith("acknowledges"))
        heir = house.worker()
        heir.claim()  # what nobody has claimed, nobody has either: so it knows the queue
        Lists(house.client, QUEUE).run_out()
        heir.leases.sweep()
        while outcomes_left := heir.claim():  # each time its share
            heir.finish(outcomes_left)
        assert house.callbacks() == [[[index] for index in range(6)]]


def crew(house: House, count: int) -> list[Worker]:
    """Workers that share what waits."""
    workers = [house.worker() for _ in range(count)]
    for worker in workers:
        worker.leases.refresh([QUEUE])
    return workers
