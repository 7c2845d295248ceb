"""Parts of chords are settled in bulk, and are what Celery's own script would have added; Celery calls back, once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from batchery.worker.broker import Settled
from celery import chord
from hypothesis import given
from hypothesis import strategies as st

from tests.support.houses import GROUP, QUEUE, House, Worker, house_at
from tests.support.leases import Lists

# Celery's own way to store a result.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


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
